//! What the configuration writes.

/// `federation.example.com` or `*.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    text: Box<str>,
}

impl HostPattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { text: text.into() })
    }
    /// The pattern in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Whether a host (lower case, no port) matches.
    pub fn matches(&self, host: &str) -> bool {
        let _ = host;
        unimplemented!()
    }
}

/// `/api/a2a/jsonrpc`, or `/.well-known/*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPattern {
    text: std::sync::Arc<str>,
}

impl PathPattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { text: text.into() })
    }
    /// The pattern as configured: the metrics' label.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Whether a path matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        let _ = path;
        unimplemented!()
    }
}

/// The methods of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodSet(u16);

impl MethodSet {
    /// Reads method names; `GET` brings `HEAD`.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let _ = names;
        Ok(Self(0))
    }
    /// Whether a method is among them.
    pub fn contains(self, method: &http::Method) -> bool {
        let _ = (self.0, method);
        unimplemented!()
    }
    /// `GET, HEAD, POST`: the value of `Allow`.
    pub fn allow(self) -> String {
        unimplemented!()
    }
}
