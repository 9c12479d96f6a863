//! `${NAME}`: values from the environment.

use super::locate::{Kind, Node, Tree};
use super::place::{Fault, Step, Steps};

/// What the environment changed.
#[derive(Default)]
pub(super) struct Expanded {
    /// Missing variables and wrong spellings.
    pub faults: Vec<Fault>,
    /// Values that could not be made.
    pub unknown: Vec<Steps>,
    /// Texts that no message may show, and what to show for them.
    pub secrets: Vec<(String, String)>,
}

/// Replaces every `${NAME}` in the tree's texts; `$${` stands for `${`.
pub(super) fn expand(tree: &mut Tree, env: &dyn Fn(&str) -> Option<String>) -> Expanded {
    let mut expanded = Expanded::default();
    let mut steps = Steps::default();
    walk(&mut tree.root, &mut steps, env, &mut expanded);
    // A text of a few letters stands in many words, and is no secret either: secrets are 16 characters at least.
    expanded.secrets.retain(|(text, _)| text.len() >= 4);
    expanded
}

fn walk(node: &mut Node, steps: &mut Steps, env: &dyn Fn(&str) -> Option<String>, out: &mut Expanded) {
    match &mut node.kind {
        Kind::List(nodes) => {
            for (i, n) in nodes.iter_mut().enumerate() {
                steps.0.push(Step::Index(i));
                walk(n, steps, env, out);
                steps.0.pop();
            }
        }
        Kind::Block(entries) => {
            for e in entries {
                steps.0.push(Step::Key(e.key.clone()));
                walk(&mut e.value, steps, env, out);
                steps.0.pop();
            }
        }
        Kind::Scalar { text, plain } => {
            let holds_secret = matches!(steps.0.last(), Some(Step::Key(key)) if key.ends_with("secret"));
            if text.contains("${") {
                match expand_text(text, env) {
                    Ok((new, taken)) => {
                        for (name, value) in taken {
                            if holds_secret || names_secret(&name) {
                                out.secrets.push((value, format!("${{{name}}}")));
                            }
                        }
                        *text = new;
                        // A variable that says "null" must not take a secret away.
                        *plain = *plain && !matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
                    }
                    Err(messages) => {
                        let path = steps.to_string();
                        let fault = |message| Fault { place: node.place, path: path.clone(), message };
                        out.faults.extend(messages.into_iter().map(fault));
                        out.unknown.push(steps.clone());
                    }
                }
            }
            if holds_secret {
                out.secrets.push((text.clone(), "<secret>".into()));
            }
        }
    }
}

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["SECRET", "TOKEN", "PASS", "KEY", "AUTH", "CREDENTIAL"].iter().any(|word| name.contains(word))
}

type Taken = Vec<(String, String)>;

/// The text with its variables' values, and the variables.
fn expand_text(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(String, Taken), Vec<String>> {
    let (mut out, mut taken, mut messages, mut rest) = (String::new(), Vec::new(), Vec::new(), text);
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some(end) = after.find('}') else {
            messages.push("\"${\" without its \"}\"; write ${NAME}, or $${ for the characters themselves".into());
            return Err(messages);
        };
        let name = &after[..end];
        rest = &after[end + 1..];
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            // Not shown: it may be a part of a secret.
            messages.push("a \"${…}\" without a variable's name; write ${NAME} of letters, digits and '_'".into());
        } else if let Some(value) = env(name) {
            out.push_str(&value);
            taken.push((name.to_owned(), value));
        } else {
            messages.push(format!("the environment variable {name} is not set"));
        }
    }
    out.push_str(rest);
    if messages.is_empty() { Ok((out, taken)) } else { Err(messages) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("h1".into()),
            "N" => Some("4".into()),
            "NULL" => Some("null".into()),
            "GATEWAY_SECRET" => Some("abcdefgh".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_stand_anywhere_in_a_text() {
        assert_eq!(expand_text("http://${HOST}:${N}/", &env).unwrap().0, "http://h1:4/");
        assert_eq!(expand_text("$${HOST} $HOST ${N}$", &env).unwrap().0, "${HOST} $HOST 4$");
    }

    #[test]
    fn every_missing_variable_is_named() {
        let messages = expand_text("${A_1}${HOST}${B}", &env).unwrap_err();
        assert_eq!(messages, ["the environment variable A_1 is not set", "the environment variable B is not set"]);
        assert!(expand_text("${A", &env).is_err());
        assert!(!expand_text("${A-B}", &env).unwrap_err()[0].contains("A-B"));
    }

    #[test]
    fn an_unquoted_number_stays_one_and_null_becomes_text() {
        let (mut tree, _) = Tree::parse("a: ${N}\nb: ${NULL}\nc: \"${N}\"\n").map_err(|f| f.message).unwrap();
        expand(&mut tree, &env);
        let value = tree.root.value();
        assert_eq!((&value["a"], &value["b"], &value["c"]), (&4.into(), &"null".into(), &"4".into()));
    }

    #[test]
    fn what_must_not_be_shown_is_remembered() {
        let text = "x_secret: inline-secret\nb: ${GATEWAY_SECRET}\nc: ${HOST}\n";
        let (mut tree, _) = Tree::parse(text).map_err(|f| f.message).unwrap();
        let secrets = expand(&mut tree, &env).secrets;
        assert_eq!(
            secrets,
            [("inline-secret".into(), "<secret>".into()), ("abcdefgh".into(), "${GATEWAY_SECRET}".into())]
        );
    }
}
