//! The request that is asked about, and who sends it.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::ExplainArgs;
use crate::config::file::Protocol;
use crate::headers;
use crate::identity::{PeerIdentity, SpiffeId};
use crate::policy::peers::{Peer, PeerRule};
use crate::request::Head;
use crate::snapshot::Snapshot;

/// A request, as an HTTP/1.1 client would send it.
pub struct Asked {
    /// Index of the listener.
    pub listener: usize,
    /// Whether it goes over TLS.
    pub tls: bool,
    /// The name that the handshake asks for.
    pub sni: Option<String>,
    /// The client's end of the connection.
    pub remote: IpAddr,
    /// The certificate, as far as it is known; none: the client has none.
    pub identity: Option<PeerIdentity>,
    /// The peer that was asked for by its name.
    pub named: Option<Arc<Peer>>,
    /// The body, as long as it is announced at most; none: nobody says what it is.
    pub body: Option<Vec<u8>>,
    /// Its length, as `Content-Length` says.
    pub announced: Option<u64>,
    /// More of it was shown than is announced.
    pub overlong: bool,
    /// All fields.
    pub headers: HeaderMap,
    method: Method,
    target: String,
    raw: String,
}

impl Asked {
    pub fn new(args: &ExplainArgs, snapshot: &Snapshot) -> Result<Self, String> {
        let example = "write it as \"POST https://federation.example.com/api/a2a/jsonrpc\"";
        let wrong = || format!("{:?} is not method and URL; {example}", args.request);
        let (method, url) = args.request.split_once(' ').ok_or_else(wrong)?;
        let parsed: Method = method.parse().map_err(|_| wrong())?;
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let host = authority.rsplit_once(':').filter(|(_, p)| p.parse::<u16>().is_ok()).map_or(authority, |(h, _)| h);
        let body = args
            .body
            .as_ref()
            .map(|file| fs::read(file).map_err(|e| format!("the body {} can't be read: {e}", file.display())));
        let mut body = body.transpose()?;
        let (raw, headers) = head(args, &format!("{method} {target} HTTP/1.1"), authority, body.as_deref())?;
        let announced = headers::content_length(&headers);
        if announced == Some(0) {
            body.get_or_insert_default();
        }
        let most = announced.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let overlong = body.as_ref().is_some_and(|body| body.len() > most);
        // On the connection that is where the next request begins.
        body.iter_mut().for_each(|body| body.truncate(most));
        let (identity, named) = match &args.peer {
            Some(who) if tls => who_is(who, snapshot)?,
            _ => (None, None),
        };
        Ok(Self {
            listener: listener(args, snapshot, tls, authority)?,
            tls,
            sni: (tls && !host.starts_with('[') && host.parse::<IpAddr>().is_err()).then(|| host.to_owned()),
            remote: args.address,
            identity,
            named,
            body,
            announced,
            overlong,
            headers,
            method: parsed,
            target,
            raw,
        })
    }

    /// A body is shown, or the header fields announce one.
    pub fn has_body(&self) -> bool {
        self.body.as_ref().is_some_and(|body| !body.is_empty())
            || self.announced.is_some_and(|length| length > 0)
            || self.headers.contains_key(headers::TRANSFER_ENCODING)
    }

    /// As the gateway sees it.
    pub fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            target: self.target.as_bytes(),
            authority: None,
            scheme: None,
            headers: &self.headers,
            version: Version::HTTP_11,
            raw: Some(self.raw.as_bytes()),
        }
    }
}

/// Request line and fields, as text and parsed.
fn head(args: &ExplainArgs, line: &str, authority: &str, body: Option<&[u8]>) -> Result<(String, HeaderMap), String> {
    let mut fields = Vec::new();
    for text in &args.header {
        let wrong = || format!("{text:?} is not a header; write \"Name: value\"");
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        let value = value.trim();
        let parsed: HeaderName = name.parse().map_err(|_| wrong())?;
        fields.push((parsed, HeaderValue::from_str(value).map_err(|_| wrong())?, format!("{name}: {value}\r\n")));
    }
    let chunked = fields.iter().any(|(name, ..)| *name == headers::TRANSFER_ENCODING);
    let mut add = |name: HeaderName, value: &str| {
        if fields.iter().all(|(other, ..)| *other != name) {
            let shown = format!("{name}: {value}\r\n");
            let value = HeaderValue::from_str(value).map_err(|_| format!("{value:?} can't stand in a header"))?;
            fields.insert(0, (name, value, shown));
        }
        Ok::<_, String>(())
    };
    if let Some(body) = body {
        add(CONTENT_TYPE, "application/json")?;
        if !chunked {
            add(CONTENT_LENGTH, &body.len().to_string())?;
        }
    }
    add(HOST, authority)?;
    let (mut raw, mut headers) = (format!("{line}\r\n"), HeaderMap::new());
    for (name, value, shown) in fields {
        raw.push_str(&shown);
        headers.append(name, value);
    }
    raw.push_str("\r\n");
    Ok((raw, headers))
}

/// The listener that is meant.
fn listener(args: &ExplainArgs, snapshot: &Snapshot, tls: bool, authority: &str) -> Result<usize, String> {
    let listeners = &snapshot.config.listeners;
    if let Some(name) = &args.listener {
        let known = || listeners.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = listeners.iter().position(|l| l.name.as_str() == name);
        return found.ok_or_else(|| format!("no listener named {name:?}; known: {}", known()));
    }
    let protocol = if tls { Protocol::Https } else { Protocol::Http };
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port: u16 = port.unwrap_or(if tls { 443 } else { 80 });
    let speaks = |l: &&crate::config::Listener| l.protocol == protocol;
    let by_port = listeners.iter().filter(speaks).find(|l| l.address.port() == port);
    let found = by_port.or_else(|| listeners.iter().find(speaks)).map(|l| &l.name);
    found
        .and_then(|name| listeners.iter().position(|l| l.name == *name))
        .ok_or_else(|| format!("no listener speaks {}", if tls { "https" } else { "http" }))
}

type Who = (Option<PeerIdentity>, Option<Arc<Peer>>);

/// A certificate with this URI or DNS name, or one of the peer of this name.
fn who_is(who: &str, snapshot: &Snapshot) -> Result<Who, String> {
    let named = snapshot.peers.iter().find(|peer| peer.name.as_str() == who).cloned();
    let mut identity = PeerIdentity {
        spiffe_id: None,
        uris: Vec::new(),
        dns: Vec::new(),
        subject: String::new(),
        issuer: String::new(),
        serial: String::new(),
        fingerprint: [0; 32],
        not_before: 0,
        not_after: i64::MAX,
        xfcc: "Hash=...".into(),
        client_cert: ":...:".into(),
    };
    let rule = named.as_ref().and_then(|peer| snapshot.config.peers.iter().find(|p| p.name == peer.name));
    let shown = match rule.map(|peer| &peer.rule) {
        Some(PeerRule::Fingerprint(bytes)) => {
            identity.fingerprint = *bytes;
            return Ok((Some(identity), named));
        }
        // Of a pattern, one of the certificates that it is for; which one does not matter to its peer.
        Some(rule) => rule.to_string(),
        None => who.to_owned(),
    };
    if shown.contains("://") {
        identity.spiffe_id = SpiffeId::parse(&shown).ok();
        identity.xfcc = format!("Hash=...;URI={shown}");
        identity.uris.push(shown);
    } else if shown.contains('.') {
        identity.xfcc = format!("Hash=...;DNS={shown}");
        identity.dns.push(shown.to_ascii_lowercase());
    } else {
        let known: Vec<_> = snapshot.config.peers.iter().take(20).map(|p| p.name.as_str()).collect();
        return Err(format!("no peer is named {who:?} (and it is no URI or DNS name); known: {}", known.join(", ")));
    }
    Ok((Some(identity), named))
}
