//! A client is verified by the bundle of its own trust domain and by no other (SPIFFE Workload API, section 4.6): a CA that
//! is trusted for one trust domain must not be able to issue members of another.
//!
//! OpenSSL verifies by the one store of a context, which is chosen before the client's certificate is known. So it is told
//! when it verifies which CAs to trust (`client_chain`).

use ahash::AHashMap;
use openssl::error::ErrorStack;
use openssl::stack::Stack;
use openssl::x509::{X509, X509Ref};

use super::trust_domain_of_cert;

/// Trust domains, each with its CAs.
pub(in crate::tls) struct TrustDomains(AHashMap<String, Stack<X509>>);

impl TrustDomains {
    pub(in crate::tls) fn new(bundles: &[(String, Vec<X509>)]) -> Result<Self, ErrorStack> {
        let mut all = AHashMap::with_capacity(bundles.len());
        for (name, certs) in bundles {
            let mut stack = Stack::new()?;
            for cert in certs {
                stack.push(cert.clone())?;
            }
            all.insert(name.clone(), stack);
        }
        Ok(Self(all))
    }

    /// The CAs that a client is verified by, or why there are none.
    pub(in crate::tls) fn find(&self, client: &X509Ref) -> Result<&Stack<X509>, String> {
        let name = trust_domain_of_cert(client).ok_or("the certificate carries no SPIFFE ID")?;
        self.0.get(&name).ok_or_else(|| format!("the trust domain {name} is not among the listener's"))
    }
}
