//! What is to be had from the admin listener.

use http::Method;

/// A path. A new one gets its variant here, its function in [`super::answer`], and its words in `openapi.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Page,
    Health,
    Ready,
    Metrics,
    Status,
    OpenApi,
    Reload,
    Maintenance,
    Drain,
    LogLevel,
}

impl Endpoint {
    pub(super) const ALL: [Endpoint; 10] = [
        Endpoint::Page,
        Endpoint::Health,
        Endpoint::Ready,
        Endpoint::Metrics,
        Endpoint::Status,
        Endpoint::OpenApi,
        Endpoint::Reload,
        Endpoint::Maintenance,
        Endpoint::Drain,
        Endpoint::LogLevel,
    ];

    pub(super) fn path(self) -> &'static str {
        match self {
            Endpoint::Page => "/",
            Endpoint::Health => "/v1/health",
            Endpoint::Ready => "/v1/ready",
            Endpoint::Metrics => "/v1/metrics",
            Endpoint::Status => "/v1/status",
            Endpoint::OpenApi => "/v1/openapi.json",
            Endpoint::Reload => "/v1/reload",
            Endpoint::Maintenance => "/v1/maintenance",
            Endpoint::Drain => "/v1/drain",
            Endpoint::LogLevel => "/v1/log-level",
        }
    }

    pub(super) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Its methods; `HEAD` goes where `GET` does.
    pub(super) fn methods(self) -> &'static [Method] {
        const READ: &[Method] = &[Method::GET];
        const CHANGE: &[Method] = &[Method::POST];
        const BEGIN_AND_END: &[Method] = &[Method::POST, Method::DELETE];
        const READ_AND_CHANGE: &[Method] = &[Method::GET, Method::POST];
        match self {
            Self::Page | Self::Health | Self::Ready | Self::Metrics | Self::Status | Self::OpenApi => READ,
            Self::Reload => CHANGE,
            Self::Maintenance | Self::Drain => BEGIN_AND_END,
            Self::LogLevel => READ_AND_CHANGE,
        }
    }

    /// Value of `Allow`.
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Page | Self::Health | Self::Ready | Self::Metrics | Self::Status | Self::OpenApi => "GET, HEAD",
            Self::Reload => "POST",
            Self::Maintenance | Self::Drain => "POST, DELETE",
            Self::LogLevel => "GET, HEAD, POST",
        }
    }

    /// Needs no secret: probes of an orchestrator carry none and learn little, and the page knows nothing by itself.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Page | Self::Health | Self::Ready)
    }

    /// Also without a secret not for a web page that has had its name pointed here (DNS rebinding). Probes and scrapers call
    /// the listener by whatever name they like.
    pub(super) fn is_for_operators(self) -> bool {
        !matches!(self, Self::Health | Self::Ready | Self::Metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_names_the_methods() {
        for endpoint in Endpoint::ALL {
            let mut names: Vec<_> = endpoint.methods().iter().map(Method::as_str).collect();
            if names.contains(&"GET") {
                names.insert(1, "HEAD");
            }
            assert_eq!(endpoint.allow(), names.join(", "), "{endpoint:?}");
            assert_eq!(Endpoint::at(endpoint.path()), Some(endpoint));
        }
    }
}
