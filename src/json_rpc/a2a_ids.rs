//! Which conversation and which task a call is about, as A2A has it: read from the params of a call that [`super::scan()`]
//! has found well-formed. Builds nothing, and is only asked where somebody balances by it.

use super::lexer::{DEPTH_MAX, Lexer, Stopped};
use super::scan::{Call, ParamsKind};
use super::text::Text;

/// The ids of a call, as far as it has some. Of equal names the last counts, as for Hive's `JSON.parse`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct A2aIds<'a> {
    /// `params.message.contextId`, or `params.contextId`.
    pub context: Option<Text<'a>>,
    /// `params.message.taskId`, or `params.taskId`, or `params.id` of a method about tasks.
    pub task: Option<Text<'a>>,
}

/// The ids of a call.
pub fn a2a_ids<'a>(call: &Call<'a>) -> A2aIds<'a> {
    let Some(params) = call.params.filter(|params| params.kind == ParamsKind::Object) else { return A2aIds::default() };
    let mut found = Found::default();
    // It is known to be well-formed; what could not be read would only be an id less.
    let _ = object(&mut Lexer::new(params.raw, DEPTH_MAX), 1, &mut found);
    let [message, outer] = [found.message, found.params];
    let id = outer.id.filter(|_| is_about_a_task(call));
    A2aIds { context: message.context.or(outer.context), task: message.task.or(outer.task).or(id) }
}

/// `tasks/get` and its like (v0.3), `GetTask`, `SubscribeToTask` and theirs (v1.0).
fn is_about_a_task(call: &Call<'_>) -> bool {
    let method = call.method.raw();
    method.starts_with("tasks/") || method.contains("Task")
}

#[derive(Default)]
struct Found<'a> {
    message: Level<'a>,
    params: Level<'a>,
}

/// The ids that stand in one object.
#[derive(Default, Clone, Copy)]
struct Level<'a> {
    context: Option<Text<'a>>,
    task: Option<Text<'a>>,
    id: Option<Text<'a>>,
}

/// `params` (depth 1) or its message (depth 2), from its brace.
fn object<'a>(lexer: &mut Lexer<'a>, depth: usize, found: &mut Found<'a>) -> Result<(), Stopped> {
    lexer.open(depth)?;
    if lexer.next()? == b'}' {
        lexer.at += 1;
        return Ok(());
    }
    loop {
        let name = lexer.name()?;
        let first = lexer.next()?;
        if depth == 1 && name == "message" {
            found.message = Level::default();
        }
        if depth == 1 && first == b'{' && name == "message" {
            object(lexer, 2, found)?;
        } else {
            let start = lexer.at;
            let escaped = lexer.value(depth)?;
            let raw = lexer.since(start);
            let text = raw.get(1..raw.len().saturating_sub(1)).filter(|text| first == b'"' && !text.is_empty());
            let level = if depth == 1 { &mut found.params } else { &mut found.message };
            level.take(&name, text.map(|text| Text::new(text, escaped)));
        }
        let more = lexer.next()? == b',';
        lexer.at += 1;
        if !more {
            return Ok(());
        }
    }
}

impl<'a> Level<'a> {
    fn take(&mut self, name: &Text<'a>, value: Option<Text<'a>>) {
        if *name == "contextId" {
            self.context = value;
        } else if *name == "taskId" {
            self.task = value;
        } else if *name == "id" {
            self.id = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::scan::{Limits, scan};
    use super::*;

    fn ids(method: &str, params: &str) -> (Option<String>, Option<String>) {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"7","method":"{method}","params":{params}}}"#);
        let mut ids = (None, None);
        scan(body.as_bytes(), &Limits { max_depth: 512, batch: None, any_version: false }, |call| {
            let found = a2a_ids(&call);
            ids = (found.context.map(|t| t.decode().into_owned()), found.task.map(|t| t.decode().into_owned()));
            ControlFlow::<()>::Continue(())
        })
        .unwrap();
        ids
    }

    fn some(context: &str, task: &str) -> (Option<String>, Option<String>) {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (text(context), text(task))
    }

    #[test]
    fn ids_are_found_where_a2a_puts_them() {
        for (method, params, context, task) in [
            ("message/send", r#"{"message":{"contextId":"c","taskId":"t","parts":[{"text":"x"}]}}"#, "c", "t"),
            ("SendMessage", r#"{ "tenant" : "a", "message" : { "taskId" : "t" } }"#, "", "t"),
            (
                "message/stream",
                r#"{"message":{"parts":[{"contextId":"not this"}],"metadata":{"taskId":"nor"}}}"#,
                "",
                "",
            ),
            ("tasks/get", r#"{"id":"t","historyLength":3}"#, "", "t"),
            ("GetTask", r#"{"historyLength":3,"id":"t"}"#, "", "t"),
            ("tasks/list", r#"{"contextId":"c"}"#, "c", ""),
            ("tasks/pushNotificationConfig/set", r#"{"taskId":"t","pushNotificationConfig":{"id":"n"}}"#, "", "t"),
            ("GetTaskPushNotificationConfig", r#"{"id":"config","taskId":"t"}"#, "", "t"),
            ("agent/other", r#"{"id":"x"}"#, "", ""),
            ("message/send", r#"["contextId"]"#, "", ""),
            ("message/send", "{}", "", ""),
        ] {
            assert_eq!(ids(method, params), some(context, task), "{method} {params}");
        }
    }

    #[test]
    fn an_id_is_the_same_however_it_is_written() {
        assert_eq!(
            ids("message/send", r#"{"mess\u0061ge":{"context\u0049d":"a\u00e9","contextId":"b\u00e9"}}"#).0.unwrap(),
            "bé"
        );
        assert_eq!(ids("message/send", r#"{"message":{"contextId":"a"},"message":{"taskId":"b"}}"#), some("", "b"));
    }

    #[test]
    fn what_is_no_text_is_no_id() {
        for value in ["1", "null", "{}", "[]", "\"\"", "true"] {
            let params = format!(r#"{{"message":{{"contextId":{value},"taskId":{value}}},"id":{value}}}"#);
            assert_eq!(ids("tasks/get", &params), (None, None), "{value}");
        }
    }
}
