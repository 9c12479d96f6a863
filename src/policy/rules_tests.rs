//! Request rules: what meets which, what that leads to, and that no expression is slow.

use std::time::{Duration, Instant};

use http::HeaderValue;

use super::*;

fn rule(name: &str, test: Test, action: Action) -> Rule {
    Rule { name: RuleName::new(name).unwrap(), test, action }
}

fn deny(test: Test) -> Rule {
    rule("r", test, Action::Deny)
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn headers(all: &[(&'static str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        map.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    map
}

fn check(rules: &[Rule], target: &str, all: &[(&'static str, &[u8])]) -> (Result<(), Refusal>, Vec<String>) {
    let rules = Rules::build("route/a", rules, &Metrics::new()).unwrap();
    let mut met = Vec::new();
    let headers = headers(all);
    let result = rules.check(&Facts { target: target.as_bytes(), headers: &headers }, |name| met.push(name.to_owned()));
    (result, met)
}

#[test]
fn a_user_agent_is_found_in_any_case_and_as_plain_text() {
    let rules = [deny(Test::UserAgent(vec!["sqlmap".into(), "a.b".into()]))];
    for (agent, blocked) in
        [("SQLMap/1.7", true), ("Mozilla a.B", true), ("a-b", false), ("curl/8", false), ("", false)]
    {
        let (result, _) = check(&rules, "/", &[("user-agent", agent.as_bytes())]);
        assert_eq!(result.is_err(), blocked, "{agent}");
    }
    assert_eq!(check(&rules, "/", &[]).0, Ok(()));
    let twice: &[(&str, &[u8])] = &[("user-agent", b"curl"), ("user-agent", b"sqlmap")];
    assert_eq!(check(&rules, "/", twice).0, Err(Refusal::UserAgentBlocked), "every field counts");
}

#[test]
fn expressions_match_anywhere_unless_anchored_and_on_bytes() {
    let path = |text: &str| [deny(Test::Path(pattern(text)))];
    assert!(check(&path("adm"), "/x/admin?adm", &[]).0.is_err());
    assert!(check(&path("^adm"), "/admin", &[]).0.is_ok());
    assert!(check(&path("^/admin$"), "/admin?x", &[]).0.is_err(), "the query is not part of the path");
    assert!(check(&path("adm"), "/x?adm", &[]).0.is_ok());
    assert!(check(&path("(?i)ADM"), "/adm", &[]).0.is_err());
    let query = [deny(Test::Query(pattern(r"(^|&)debug=")))];
    assert!(check(&query, "/x?a=1&debug=1", &[]).0.is_err() && check(&query, "/debug=", &[]).0.is_ok());
    let header = [deny(Test::Header("x-a".parse().unwrap(), pattern(r"\xff")))];
    assert_eq!(check(&header, "/", &[("x-a", b"a"), ("x-a", b"\xfe\xff")]).0, Err(Refusal::RequestDenied));
    assert!(check(&header, "/", &[("x-b", b"\xff")]).0.is_ok());
}

#[test]
fn sizes_are_limits_that_may_be_reached() {
    let fields: &[(&str, &[u8])] = &[("a", b"12345"), ("b", b"")];
    for (test, refusal) in [
        (Test::MaxHeaders(2), None),
        (Test::MaxHeaders(1), Some(Refusal::HeaderTooLarge)),
        (Test::MaxHeaderBytes(5), None),
        (Test::MaxHeaderBytes(4), Some(Refusal::HeaderTooLarge)),
        (Test::MaxUriBytes(6), None),
        (Test::MaxUriBytes(5), Some(Refusal::UriTooLong)),
    ] {
        assert_eq!(check(&[deny(test.clone())], "/a?b=c", fields).0.err(), refusal, "{test:?}");
    }
}

#[test]
fn every_rule_that_is_met_is_told_and_the_first_that_denies_decides() {
    let rules = [
        rule("watch", Test::Path(pattern("a")), Action::Log),
        rule("long", Test::MaxUriBytes(3), Action::Deny),
        rule("agent", Test::UserAgent(vec!["x".into()]), Action::Deny),
        rule("other", Test::Path(pattern("zzz")), Action::Deny),
    ];
    let (result, met) = check(&rules, "/aaaa", &[("user-agent", b"x")]);
    assert_eq!(result, Err(Refusal::UriTooLong));
    assert_eq!(met, ["route/a/watch", "route/a/long", "route/a/agent"]);
    assert_eq!(check(&rules, "/aa", &[]), (Ok(()), vec!["route/a/watch".into()]));
}

#[test]
fn what_is_no_expression_is_said_in_one_line_with_the_way_out() {
    for (text, said) in [
        ("a(b", "unclosed group at its character 2; put a backslash"),
        ("(?=a)", "look-around"),
        (r"(a)\1", "linear time"),
        ("[", "is not a regular expression: unclosed character class"),
        ("", "matches everything"),
        ("(a{1000}){1000}", "more than 1024 KiB once compiled; write smaller repetitions"),
    ] {
        let why = Pattern::parse(text).unwrap_err();
        assert!(why.contains(said) && !why.contains('\n'), "{text}: {why}");
    }
}

#[test]
fn an_expression_made_to_be_slow_is_not() {
    let rules = [deny(Test::Header("x".parse().unwrap(), pattern("(a+)+$|(a|aa)+$|(.*)*b$")))];
    let value = vec![b'a'; 64 << 10];
    let begun = Instant::now();
    let mut all = value.clone();
    all.push(b'!');
    assert!(check(&rules, "/", &[("x", &all)]).0.is_ok());
    // A backtracking engine would take longer than the universe has been there.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
