//! A client is verified by the bundle of its own trust domain and by no other (SPIFFE Workload API, section 4.6): a CA that
//! is trusted for one trust domain must not be able to issue members of another.
//!
//! OpenSSL verifies by the one store of a context, which is chosen before the client's certificate is known. So it calls
//! back instead of verifying, and is told then which CAs to trust.

use std::ffi::{c_int, c_void};
use std::sync::LazyLock;

use ahash::AHashMap;
use foreign_types::{ForeignType, ForeignTypeRef};
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{SslContext, SslContextBuilder};
use openssl::stack::Stack;
use openssl::x509::{X509, X509Ref, X509StoreContext, X509StoreContextRef};

use super::trust_domain_of_cert;
use crate::tls::handshake;

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
    fn find(&self, client: &X509Ref) -> Result<&Stack<X509>, String> {
        let name = trust_domain_of_cert(client).ok_or("the certificate carries no SPIFFE ID")?;
        self.0.get(&name).ok_or_else(|| format!("the trust domain {name} is not among the listener's"))
    }
}

/// Has the clients of a context verified by their trust domains.
pub(in crate::tls) fn verify_by_trust_domain(
    context: &mut SslContextBuilder,
    domains: TrustDomains,
) -> Result<(), ErrorStack> {
    context.set_ex_data(index()?, domains);
    // SAFETY: the context is alive; the callback has the type that OpenSSL documents, and needs no argument.
    unsafe { SSL_CTX_set_cert_verify_callback(context.as_ptr(), Some(verify), std::ptr::null_mut()) };
    Ok(())
}

fn index() -> Result<Index<SslContext, TrustDomains>, ErrorStack> {
    static INDEX: LazyLock<Option<Index<SslContext, TrustDomains>>> = LazyLock::new(|| SslContext::new_ex_index().ok());
    INDEX.ok_or_else(ErrorStack::get)
}

/// `SSL_CTX_set_cert_verify_callback`'s callback: 1 if the client is trusted.
unsafe extern "C" fn verify(context: *mut openssl_sys::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL passes the context of the verification that it has set up, with the client's certificate in it.
    let (store_context, client) = unsafe {
        let client = X509_STORE_CTX_get0_cert(context);
        if client.is_null() {
            return 0;
        }
        (X509StoreContextRef::from_ptr_mut(context), X509Ref::from_ptr(client))
    };
    let ssl = X509StoreContext::ssl_idx().ok().and_then(|at| store_context.ex_data(at));
    let domains = ssl.zip(index().ok()).and_then(|(ssl, at)| ssl.ssl_context().ex_data(at));
    let found = domains.map_or_else(|| Err("no trust domains are known".to_owned()), |domains| domains.find(client));
    match found {
        // SAFETY: the stack belongs to the SSL_CTX that the connection holds, and OpenSSL only reads it.
        Ok(bundle) => unsafe {
            X509_STORE_CTX_set0_trusted_stack(context, bundle.as_ptr());
            openssl_sys::X509_verify_cert(context)
        },
        Err(why) => {
            if let Some(ssl) = ssl {
                handshake::note_untrusted(ssl, client, why);
            }
            let unknown = openssl_sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY;
            // SAFETY: any number is an error of OpenSSL's; this one is.
            store_context.set_error(unsafe { openssl::x509::X509VerifyResult::from_raw(unknown) });
            0
        }
    }
}

// What the `openssl` crate lacks; x509_vfy.h and ssl.h, the same from 3.0 to 3.6.
unsafe extern "C" {
    fn SSL_CTX_set_cert_verify_callback(
        context: *mut openssl_sys::SSL_CTX,
        callback: Option<unsafe extern "C" fn(*mut openssl_sys::X509_STORE_CTX, *mut c_void) -> c_int>,
        argument: *mut c_void,
    );
    fn X509_STORE_CTX_get0_cert(context: *const openssl_sys::X509_STORE_CTX) -> *mut openssl_sys::X509;
    fn X509_STORE_CTX_set0_trusted_stack(
        context: *mut openssl_sys::X509_STORE_CTX,
        trusted: *mut openssl_sys::stack_st_X509,
    );
}
