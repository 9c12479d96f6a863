//! The address of an OpenTelemetry collector.

use http::Uri;

/// Where the OTLP receiver of a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// `https://`.
    pub tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// 80 or 443 unless it is written.
    pub port: u16,
    /// Host and port as the `Host` header has them.
    pub authority: String,
    /// Of the request; ends in `/v1/traces`.
    pub path: String,
}

impl Collector {
    /// Parses `http[s]://host[:port][/path]`; `/v1/traces` is added unless it is there
    /// (OpenTelemetry Protocol Exporter, `OTEL_EXPORTER_OTLP_ENDPOINT`).
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ENDING: &str = "/v1/traces";
        let wrong = || format!("{text:?} is no URL of a collector; write one such as http://127.0.0.1:4318");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority =
            uri.authority().filter(|a| !a.as_str().contains('@') && !a.host().is_empty()).ok_or_else(wrong)?;
        if uri.query().is_some() {
            return Err(wrong());
        }
        if authority.port_u16() == Some(4317) {
            return Err(format!("{text:?}: 4317 is the port of OTLP over gRPC; over HTTP it is 4318"));
        }
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix(ENDING).unwrap_or(base);
        Ok(Self {
            tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: format!("{base}{ENDING}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added_once() {
        for (text, host, port, path) in [
            ("http://127.0.0.1:4318", "127.0.0.1", 4318, "/v1/traces"),
            ("https://otel.example/", "otel.example", 443, "/v1/traces"),
            ("http://[::1]:4318/v1/traces", "::1", 4318, "/v1/traces"),
            ("http://otel/otlp/", "otel", 80, "/otlp/v1/traces"),
        ] {
            let collector = Collector::parse(text).unwrap();
            assert_eq!(
                (collector.host.as_str(), collector.port, collector.path.as_str()),
                (host, port, path),
                "{text}"
            );
        }
        for text in
            ["127.0.0.1:4318", "grpc://x", "http://", "http://a@b", "http://a/?x", "http://a:4317", "http:///v1"]
        {
            assert!(Collector::parse(text).is_err(), "{text}");
        }
    }
}
