//! The shape of the tree, held by a test: which module may use which, who may name Pingora, how long a file may be.
// Functions outside of #[test] ones fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that may name Pingora's crates.
const PINGORA: &[&str] = &["tls", "upstream", "proxy", "admin", "server"];
/// May use the plain structures of `config::file` though they stand above `config`.
const RAW_CONFIG: &[&str] = &["tls", "upstream"];
/// Lines of code of a file; comments, blank lines and tests don't count.
const CODE_LINES_MAX: usize = 400;
/// The same of a file of tests alone.
const TEST_LINES_MAX: usize = 500;
/// Lines of code of a function.
const FUNCTION_LINES_MAX: usize = 75;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// Every Rust file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// The modules in the order of `lib.rs`.
fn order() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

/// The module that a file below `src` belongs to; `None` for `lib.rs` and `main.rs`.
fn module(file: &Path) -> Option<String> {
    let below = file.strip_prefix(root().join("src")).ok()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    let name = first.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// A file of unit tests alone: they may use what they like.
fn is_test_file(file: &Path) -> bool {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    stem == "tests" || stem.ends_with("_tests") || file.components().any(|c| c.as_os_str() == "tests")
}

/// The code without comments, blank lines, and what follows `#[cfg(test)]` on a module at the end.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    let mut lines = Vec::new();
    let mut all = text.lines().enumerate().peekable();
    while let Some((n, line)) = all.next() {
        let next_is_tests = all.peek().is_some_and(|(_, l)| l.starts_with("mod tests {"));
        if line.trim() == "#[cfg(test)]" && next_is_tests {
            break;
        }
        let bare = line.trim();
        if !bare.is_empty() && !bare.starts_with("//") {
            lines.push((n + 1, line.split(" // ").next().unwrap().to_owned()));
        }
    }
    lines
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap().display().to_string()
}

/// Every `crate::NAME` of a line, also inside of `use crate::{a::B, c};`.
fn uses(line: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        // $crate and other crates' paths are something else.
        if line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            found.push(name(&list[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn the_reader_of_uses_sees_what_a_line_uses() {
    assert_eq!(uses("use crate::route::Table;"), ["route"]);
    assert_eq!(uses("use crate::{names::{A, B}, units};"), ["names", "units"]);
    assert_eq!(uses("let x = crate::clock::Clock::System; $crate::tls::y()"), ["clock"]);
}

#[test]
fn a_module_uses_only_what_stands_above_it() {
    let order = order();
    let place = |name: &str| order.iter().position(|m| m == name);
    let mut wrong = Vec::new();
    for file in files(&root().join("src")) {
        let Some(own) = module(&file).filter(|_| !is_test_file(&file)) else { continue };
        let Some(own_place) = place(&own) else {
            wrong.push(format!("{}: module {own} is not in lib.rs", shown(&file)));
            continue;
        };
        for (n, line) in code(&file) {
            for used in uses(&line) {
                let raw_config =
                    used == "config" && RAW_CONFIG.contains(&own.as_str()) && line.contains("config::file");
                if place(&used).is_some_and(|p| p > own_place) && !raw_config {
                    wrong.push(format!("{}:{n}: {own} uses {used}, which stands below it", shown(&file)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_some_modules_name_pingora() {
    let mut wrong = Vec::new();
    for file in files(&root().join("src")) {
        let allowed = module(&file).is_some_and(|m| PINGORA.contains(&m.as_str()));
        for (n, line) in code(&file) {
            // A crate's name in a path or a use, not in a text such as a log filter.
            let names = ["pingora::", "pingora_", "use pingora"].iter().any(|p| line.contains(p));
            if names && !allowed {
                wrong.push(format!("{}:{n}: {}", shown(&file), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for file in ["src", "tests", "benches"].iter().flat_map(|d| files(&root().join(d))) {
        let lines = code(&file).len();
        let limit = if is_test_file(&file) { TEST_LINES_MAX } else { CODE_LINES_MAX };
        if lines > limit {
            long.push(format!("{}: {lines} lines of code, the limit is {limit}", shown(&file)));
        }
    }
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for file in files(&root().join("src")).iter().filter(|f| !is_test_file(f)) {
        let lines = code(file);
        for (i, (n, line)) in lines.iter().enumerate() {
            let bare = line.trim_start();
            let is_function = ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "async fn ", "pub async fn "]
                .iter()
                .any(|p| bare.starts_with(p));
            if !is_function || line.trim_end().ends_with(['}', ';']) {
                continue;
            }
            // rustfmt puts the closing brace where the function's line begins.
            let end = format!("{}}}", &line[..line.len() - bare.len()]);
            let length = lines[i..].iter().position(|(_, l)| *l == end).unwrap_or(0);
            if length > FUNCTION_LINES_MAX {
                long.push(format!("{}:{n}: {length} lines: {}", shown(file), bare.trim_end()));
            }
        }
    }
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn main_is_thin_and_nobody_else_ends_the_process() {
    let main = root().join("src/main.rs");
    assert!(fs::read_to_string(&main).unwrap().lines().count() <= 100);
    for file in files(&root().join("src")).iter().filter(|f| **f != main) {
        for (n, line) in code(file) {
            assert!(!line.contains("process::exit") && !line.contains("process::abort"), "{}:{n}", shown(file));
        }
    }
}

#[test]
fn nothing_is_left_to_do_and_no_name_says_nothing() {
    for file in files(&root().join("src")) {
        for (n, line) in code(&file) {
            assert!(!["todo!(", "unimplemented!(", "dbg!("].iter().any(|m| line.contains(m)), "{}:{n}", shown(&file));
        }
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert!(!["utils", "util", "common", "helpers"].contains(&stem), "{}", shown(&file));
    }
}

#[test]
fn no_file_names_a_machine_s_own_path() {
    let mut wrong = Vec::new();
    for file in ["src", "tests", "benches"].iter().flat_map(|d| files(&root().join(d))) {
        for (n, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            // Put together so that this file does not find itself.
            if ["/wo", "/ho", "/ro"].iter().zip(["rk/", "me/", "ot/"]).any(|(a, b)| line.contains(&format!("\"{a}{b}")))
            {
                wrong.push(format!("{}:{}", shown(&file), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
