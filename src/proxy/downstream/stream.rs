//! What else Pingora asks of a stream.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use pingora::tls::ssl::SslRef;
use tokio::io::AsyncWriteExt;

use super::Downstream;
use crate::proxy::transport::Transport;

#[async_trait]
impl Shutdown for Downstream {
    async fn shutdown(&mut self) {
        // The client may be gone already; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Downstream {
    fn id(&self) -> i32 {
        self.transport.tcp().as_raw_fd()
    }
}

impl Ssl for Downstream {
    fn get_ssl(&self) -> Option<&SslRef> {
        match &self.transport {
            Transport::Tls(tls) => Some(tls.ssl()),
            Transport::Plain(_) => None,
        }
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.connection.http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Downstream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Downstream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digest.clone())
    }
}

impl GetSocketDigest for Downstream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

#[async_trait]
impl Peek for Downstream {}
