//! The admin API as a function: a request's head in, an answer out.

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, Method};
use serde_json::{Value, json};

use super::bearer::Bearer;
use super::endpoint::Endpoint;
use super::page::PAGE;
use super::query::Query;
use super::{AdminState, Command, Denied, openapi, origin};
use crate::observe::Exposition;
use crate::policy::maintenance::Target;
use crate::units::Span;

const JSON: &str = "application/json";
/// Longest `retry_after`, seconds.
const RETRY_AFTER_MAX: u32 = 7 * 24 * 3600;

/// What goes out. `HEAD` is answered with the length of the body and without it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    content_type: &'static str,
    pub(super) body: Vec<u8>,
    /// Those that only some answers have.
    special: Vec<(HeaderName, &'static str)>,
}

impl Answer {
    fn json(status: u16, body: &serde_json::Value) -> Self {
        let mut body = body.to_string().into_bytes();
        body.push(b'\n');
        Self { status, content_type: JSON, body, special: Vec::new() }
    }

    fn text(content_type: &'static str, text: &str) -> Self {
        Self { status: 200, content_type, body: text.as_bytes().to_vec(), special: Vec::new() }
    }

    /// The small error of every answer that is no JSON-RPC.
    fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "error": code, "message": message }))
    }

    /// A request that could not be read.
    pub(super) fn bad_request() -> Self {
        Self::error(400, "bad_request", "The request is malformed.")
    }

    /// A defect of the gateway's own.
    pub(super) fn internal() -> Self {
        Self::error(500, "internal", "Internal error.")
    }

    /// All fields of the header but those of the connection.
    pub(super) fn headers(&self) -> Vec<(HeaderName, String)> {
        let mut headers = vec![
            (CONTENT_TYPE, self.content_type.to_owned()),
            (CONTENT_LENGTH, self.body.len().to_string()),
            // What is shown is true now only, and nobody else's.
            (CACHE_CONTROL, "no-store".to_owned()),
            (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        ];
        headers.extend(self.special.iter().map(|(name, value)| (name.clone(), (*value).to_owned())));
        headers
    }
}

/// What is asked.
pub(super) struct Asked<'r> {
    pub(super) method: &'r Method,
    pub(super) path: &'r str,
    pub(super) query: &'r str,
    pub(super) headers: &'r HeaderMap,
}

/// Answers a request. Without the secret, where there is one, nothing is told of which other paths exist.
pub(super) fn answer(state: &AdminState, asked: &Asked<'_>) -> Answer {
    let Asked { method, headers, .. } = *asked;
    let endpoint = Endpoint::at(asked.path);
    let is_open = endpoint.is_some_and(Endpoint::is_open);
    if !is_open && (state.bearer)().is_some_and(|secret| !Bearer::new(&secret).admits(headers)) {
        let mut answer = Answer::error(401, "unauthorized", "Send the admin secret: Authorization: Bearer …");
        answer.special = vec![(WWW_AUTHENTICATE, "Bearer")];
        return answer;
    }
    let Some(endpoint) = endpoint else {
        return Answer::error(404, "not_found", "Not found.");
    };
    let reads = method == Method::GET || method == Method::HEAD;
    if !endpoint.methods().contains(if reads { &Method::GET } else { method }) {
        let mut answer = Answer::error(405, "method_not_allowed", "HTTP method not allowed.");
        answer.special = vec![(ALLOW, endpoint.allow())];
        return answer;
    }
    if endpoint.is_for_operators()
        && let Err(why) = origin::check(headers, state.loopback, reads)
    {
        return Answer::error(403, "cross_site_request", why);
    }
    match endpoint {
        Endpoint::Page => page(),
        Endpoint::Health => health(state),
        Endpoint::Ready => ready(state),
        Endpoint::Metrics => metrics(state, headers),
        Endpoint::Status => Answer::json(200, &(state.status)()),
        Endpoint::OpenApi => Answer::text(JSON, openapi::DOCUMENT),
        Endpoint::Reload => {
            let reloaded = (state.reload)();
            Answer::json(if reloaded.ok { 200 } else { 422 }, &reloaded.body)
        }
        Endpoint::Maintenance => told(maintenance(asked).and_then(|command| (state.carry_out)(&command))),
        Endpoint::Drain => told(drain(asked).and_then(|command| (state.carry_out)(&command))),
        Endpoint::LogLevel => told(log_level(state, asked, reads)),
    }
}

fn told(result: Result<Value, Denied>) -> Answer {
    match result {
        Ok(body) => Answer::json(200, &body),
        Err(denied) => Answer::error(denied.status, denied.code, &denied.message),
    }
}

fn bad_query(message: String) -> Denied {
    Denied { status: 400, code: "bad_query", message }
}

/// `POST` begins it, `DELETE` ends it.
fn maintenance(asked: &Asked<'_>) -> Result<Command, Denied> {
    let begins = *asked.method == Method::POST;
    let known = if begins { &["route", "retry_after", "fleet", "persist"][..] } else { &["route", "fleet"] };
    let query = Query::read(asked.query, known).map_err(bad_query)?;
    let target = query.get("route").map_or(Target::Gateway, |route| Target::Route(route.to_owned()));
    command(&query, target, !begins).map_err(bad_query)
}

/// The same of a node.
fn drain(asked: &Asked<'_>) -> Result<Command, Denied> {
    let begins = *asked.method == Method::POST;
    let known = if begins { &["upstream", "node", "fleet", "persist"][..] } else { &["upstream", "node", "fleet"] };
    let query = Query::read(asked.query, known).map_err(bad_query)?;
    let named = |name: &str| query.need(name).map(str::to_owned).map_err(bad_query);
    let target = Target::Node { upstream: named("upstream")?, node: named("node")? };
    command(&query, target, !begins).map_err(bad_query)
}

fn command(query: &Query, target: Target, ends: bool) -> Result<Command, String> {
    let (fleet, persist) = (query.flag("fleet")?, query.flag("persist")?);
    if fleet && persist {
        return Err("The fleet's orders persist in Redis; leave out one of fleet and persist.".to_owned());
    }
    let retry_after = query.get("retry_after").map(|text| {
        let seconds = text.parse::<Span>()?.whole_seconds();
        let fits = (1..=RETRY_AFTER_MAX).contains(&seconds).then_some(seconds);
        fits.ok_or_else(|| format!("retry_after is {text}; write 1s to 7d."))
    });
    Ok(Command { target, ends, retry_after: retry_after.transpose()?, fleet, persist })
}

fn log_level(state: &AdminState, asked: &Asked<'_>, reads: bool) -> Result<Value, Denied> {
    let query = Query::read(asked.query, if reads { &[] } else { &["filter"] }).map_err(bad_query)?;
    let wanted = if reads { None } else { Some(query.need("filter").map_err(bad_query)?) };
    let filter = (state.log_filter)(wanted).map_err(bad_query)?;
    Ok(json!({ "filter": filter }))
}

/// Knows nothing by itself: what it shows it asks for, with the secret if there is one.
fn page() -> Answer {
    let page = &*PAGE;
    let mut answer = Answer::text("text/html; charset=utf-8", page.html);
    answer.special = vec![
        (CONTENT_SECURITY_POLICY, &page.policy),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    answer
}

/// In the format that the reader prefers.
fn metrics(state: &AdminState, headers: &HeaderMap) -> Answer {
    let accept: Vec<_> = headers.get_all(ACCEPT).iter().map(|value| value.as_bytes()).collect();
    let format = Exposition::preferred(&accept.join(&b','));
    let body = state.metrics.encode_as(format).into_bytes();
    Answer { status: 200, content_type: format.content_type(), body, special: Vec::new() }
}

/// The process lives, and its threads get on. The members but `version` are the older gateway's (`hive-contract`, "Routes
/// worth publishing").
fn health(state: &AdminState) -> Answer {
    if !(state.alive)() {
        return Answer::error(503, "hangs", "The threads that serve requests do not get on.");
    }
    Answer::json(
        200,
        &json!({
            "ok": true,
            "role": "hive-mesh-gateway",
            "metricsPath": "/v1/metrics",
            "metricsAuthRequired": (state.bearer)().is_some(),
            "version": env!("CARGO_PKG_VERSION"),
        }),
    )
}

fn ready(state: &AdminState) -> Answer {
    let readiness = (state.ready)();
    let status = if readiness.is_ready() { 200 } else { 503 };
    let mut body = json!({
        "ready": readiness.is_ready(),
        "draining": readiness.draining,
        "upstreams_down": readiness.upstreams_down,
        "upstreams_drained": readiness.upstreams_drained,
        "crls_awaited": readiness.crls_awaited,
    });
    if !readiness.without_nodes.is_empty() {
        body["without_nodes"] = json!(readiness.without_nodes);
    }
    if !readiness.waiting_for_svid.is_empty() {
        body["waiting_for_svid"] = json!(readiness.waiting_for_svid);
        body["spiffe"] = json!(readiness.spiffe);
    }
    if readiness.fleet_orders_awaited {
        body["fleet_orders_awaited"] = json!(true);
    }
    Answer::json(status, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Readiness, Reloaded};
    use crate::observe::Metrics;
    use crate::secret::Secret;

    fn state(readiness: Readiness) -> AdminState {
        AdminState {
            metrics: Metrics::new(),
            alive: Box::new(|| true),
            ready: Box::new(move || readiness.clone()),
            status: Box::new(|| json!({ "version": "1" })),
            reload: Box::new(|| Reloaded { ok: false, body: json!({ "error": "config_invalid" }) }),
            carry_out: Box::new(|_| Ok(json!({ "orders": [] }))),
            log_filter: Box::new(|_| Ok("info".into())),
            bearer: Box::new(|| None),
            loopback: true,
        }
    }

    fn ask(readiness: Readiness, secret: Option<&str>, method: Method, path: &str, authorization: &str) -> Answer {
        let secret = secret.map(|s| Secret::new(s.into()));
        let state = AdminState { bearer: Box::new(move || secret.clone()), ..state(readiness) };
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(http::header::AUTHORIZATION, authorization.parse().unwrap());
        }
        headers.insert(http::header::HOST, "localhost:9901".parse().unwrap());
        answer(&state, &Asked { method: &method, path, query: "", headers: &headers })
    }

    fn get(path: &str) -> Answer {
        ask(Readiness::default(), None, Method::GET, path, "")
    }

    fn body(answer: &Answer) -> serde_json::Value {
        assert_eq!(answer.content_type, JSON);
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn header(answer: &Answer, name: &HeaderName) -> Option<String> {
        answer.headers().into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    #[test]
    fn health_answers_as_the_older_gateway_did() {
        let answer = get("/v1/health");
        assert_eq!(answer.status, 200);
        let body = body(&answer);
        assert_eq!((&body["ok"], &body["role"]), (&json!(true), &json!("hive-mesh-gateway")));
        assert_eq!(body["metricsPath"], "/v1/metrics");
        assert_eq!(header(&answer, &CACHE_CONTROL).unwrap(), "no-store");
    }

    #[test]
    fn ready_only_when_each_upstream_has_a_node_up_and_not_while_draining() {
        assert_eq!(get("/v1/ready").status, 200);
        let down = Readiness { upstreams_down: vec!["hive".into()], ..Readiness::default() };
        let answer = ask(down, None, Method::GET, "/v1/ready", "");
        assert_eq!((answer.status, &body(&answer)["upstreams_down"]), (503, &json!(["hive"])));
        let drained = Readiness { upstreams_drained: vec!["hive".into()], ..Readiness::default() };
        let answer = ask(drained, None, Method::GET, "/v1/ready", "");
        assert_eq!((answer.status, &body(&answer)["upstreams_drained"]), (503, &json!(["hive"])));
        let draining = Readiness { draining: true, ..Readiness::default() };
        let answer = ask(draining, None, Method::GET, "/v1/ready", "");
        assert_eq!((answer.status, &body(&answer)["draining"]), (503, &json!(true)));
        let waiting_for_svid = vec!["listener federation".to_owned()];
        let waiting = Readiness { waiting_for_svid, spiffe: Some("away".into()), ..Readiness::default() };
        let answer = ask(waiting, None, Method::GET, "/v1/ready", "");
        assert_eq!((answer.status, &body(&answer)["spiffe"]), (503, &json!("away")));
        assert_eq!(body(&answer)["waiting_for_svid"], json!(["listener federation"]));
        let waiting = Readiness { crls_awaited: vec!["http://ca/a.crl".into()], ..Readiness::default() };
        let answer = ask(waiting, None, Method::GET, "/v1/ready", "");
        assert_eq!((answer.status, &body(&answer)["crls_awaited"]), (503, &json!(["http://ca/a.crl"])));
    }

    #[test]
    fn metrics_are_in_the_text_format() {
        let answer = get("/v1/metrics");
        assert_eq!(answer.status, 200);
        assert!(answer.content_type.starts_with("text/plain; version=0.0.4"));
        assert!(String::from_utf8(answer.body).unwrap().contains("hive_gateway_build_info{version="));
    }

    #[test]
    fn unknown_paths_and_methods_get_the_small_error() {
        for path in ["/x", "/v1", "/v1/health/", "/V1/health", "//v1/health", "/v1/status%00"] {
            let answer = get(path);
            assert_eq!((answer.status, &body(&answer)["error"]), (404, &json!("not_found")), "{path}");
        }
        let answer = ask(Readiness::default(), None, Method::POST, "/v1/status", "");
        assert_eq!((answer.status, &body(&answer)["error"]), (405, &json!("method_not_allowed")));
        assert_eq!(header(&answer, &ALLOW).unwrap(), "GET, HEAD");
    }

    #[test]
    fn without_the_secret_only_health_and_readiness_are_shown() {
        let secret = Some("correct horse battery staple");
        let ask = |path, authorization| ask(Readiness::default(), secret, Method::GET, path, authorization);
        for path in ["/v1/health", "/v1/ready"] {
            assert_eq!(ask(path, "").status, 200, "{path}");
        }
        for path in ["/v1/metrics", "/v1/status", "/v1/else"] {
            for wrong in ["", "Bearer wrong", "Basic Y29ycmVjdA=="] {
                let answer = ask(path, wrong);
                assert_eq!((answer.status, &body(&answer)["error"]), (401, &json!("unauthorized")), "{path}");
                assert_eq!(header(&answer, &WWW_AUTHENTICATE).unwrap(), "Bearer");
            }
        }
        assert_eq!(ask("/v1/metrics", "Bearer correct horse battery staple").status, 200);
        assert_eq!(ask("/v1/else", "Bearer correct horse battery staple").status, 404);
    }

    #[test]
    fn a_reload_is_asked_for_by_post_with_the_secret_and_says_how_it_went() {
        let secret = Some("correct horse battery staple");
        let ask = |method, authorization| ask(Readiness::default(), secret, method, "/v1/reload", authorization);
        assert_eq!(ask(Method::POST, "").status, 401);
        let answer = ask(Method::POST, "Bearer correct horse battery staple");
        assert_eq!((answer.status, &body(&answer)["error"]), (422, &json!("config_invalid")));
        let answer = ask(Method::GET, "Bearer correct horse battery staple");
        assert_eq!((answer.status, header(&answer, &ALLOW).unwrap().as_str()), (405, "POST"));
    }

    #[test]
    fn another_site_can_not_reload() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::HOST, "127.0.0.1:9901".parse().unwrap());
        headers.insert(http::header::ORIGIN, "https://evil.example".parse().unwrap());
        let asked = Asked { method: &Method::POST, path: "/v1/reload", query: "", headers: &headers };
        let answer = answer(&state(Readiness::default()), &asked);
        assert_eq!((answer.status, &body(&answer)["error"]), (403, &json!("cross_site_request")));
    }
}
