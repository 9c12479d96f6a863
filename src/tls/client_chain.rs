//! A client's chain is verified in full the first time it comes, and looked up after that: partners call in with the same
//! certificates all day, and whether a chain's signatures lead to a trusted root can't change while the trust stays as it
//! is. A third of a handshake's work is saved.
//!
//! What can change is asked in every handshake: dates, revocation, and that the client holds the key (its CertificateVerify,
//! which OpenSSL checks by itself). A chain is known by the digest of every byte of every certificate that the client sent.
//! What is known belongs to one context, so a change of trust, which builds a new one, begins with nothing known; and
//! nothing is remembered of chains that are refused.
//!
//! OpenSSL calls back here instead of verifying. That is also where clients are verified by their trust domains
//! (`spiffe::trust_domains`): which CAs to trust is known only when the client's certificate is.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ahash::AHashMap;
use foreign_types::{ForeignType, ForeignTypeRef};
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::sha::Sha256;
use openssl::ssl::{SslContext, SslContextBuilder};
use openssl::stack::{Stack, StackRef};
use openssl::x509::{X509, X509Ref, X509StoreContext, X509StoreContextRef, X509VerifyResult};

use super::certificate::unix_seconds;
use super::handshake::{self, Checks};
use super::spiffe::TrustDomains;

/// Most chains that a context knows. One takes about 4 KiB for each CA above the client's certificate.
const KNOWN_MAX: usize = 1024;

/// How the clients of a context are verified.
struct ClientTrust {
    /// None: by the context's own store.
    domains: Option<TrustDomains>,
    checks: Arc<Checks>,
    known: Mutex<AHashMap<[u8; 32], Known>>,
}

/// A chain that was verified.
#[derive(Clone)]
struct Known {
    /// All above the client's certificate, the root last.
    issuers: Arc<[X509]>,
    /// When the last of its certificates begins to be valid, seconds since 1970.
    not_before: i64,
    /// When the first of them ends.
    not_after: i64,
}

/// Has the clients of a context verified.
pub(super) fn verify_clients(
    context: &mut SslContextBuilder,
    domains: Option<TrustDomains>,
    checks: Arc<Checks>,
) -> Result<(), ErrorStack> {
    context.set_ex_data(index()?, ClientTrust { domains, checks, known: Mutex::default() });
    // SAFETY: the context is alive; the callback has the type that OpenSSL documents, and needs no argument.
    unsafe { SSL_CTX_set_cert_verify_callback(context.as_ptr(), Some(verify), std::ptr::null_mut()) };
    Ok(())
}

fn index() -> Result<Index<SslContext, ClientTrust>, ErrorStack> {
    static INDEX: LazyLock<Option<Index<SslContext, ClientTrust>>> = LazyLock::new(|| SslContext::new_ex_index().ok());
    INDEX.ok_or_else(ErrorStack::get)
}

/// `SSL_CTX_set_cert_verify_callback`'s callback: 1 if the client is trusted.
unsafe extern "C" fn verify(context: *mut openssl_sys::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL passes the context of the verification that it has set up, with the client's certificate in it, and
    // what the client sent beside it, if anything. Both live as long as it does.
    let (store_context, client, sent) = unsafe {
        let (client, sent) = (X509_STORE_CTX_get0_cert(context), X509_STORE_CTX_get0_untrusted(context));
        if client.is_null() {
            return 0;
        }
        let sent = (!sent.is_null()).then(|| StackRef::<X509>::from_ptr(sent));
        (X509StoreContextRef::from_ptr_mut(context), X509Ref::from_ptr(client), sent)
    };
    let ssl = X509StoreContext::ssl_idx().ok().and_then(|at| store_context.ex_data(at));
    let trust = ssl.zip(index().ok()).and_then(|(ssl, at)| ssl.ssl_context().ex_data(at));
    let Some((ssl, trust)) = ssl.zip(trust) else { return 0 };

    // Without the time nothing is known; without the digest it could not be told what is.
    let asked = handshake::begun_at(ssl).zip(digest(client, sent));
    if let Some(known) = asked.and_then(|(now, digest)| trust.find(&digest, now)) {
        let Ok(chain) = known.chain(client) else { return 0 };
        let checks = trust.checks.clone();
        // SAFETY: OpenSSL takes over the stack, which is forgotten here.
        unsafe { X509_STORE_CTX_set0_verified_chain(context, chain.as_ptr()) };
        std::mem::forget(chain);
        store_context.set_error(X509VerifyResult::OK);
        return handshake::verify(true, store_context, &checks).into();
    }
    if let Some(domains) = &trust.domains {
        match domains.find(client) {
            // SAFETY: the stack belongs to the SSL_CTX that the connection holds, and OpenSSL only reads it.
            Ok(bundle) => unsafe { X509_STORE_CTX_set0_trusted_stack(context, bundle.as_ptr()) },
            Err(why) => {
                handshake::note_untrusted(ssl, client, why);
                let unknown = openssl_sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY;
                // SAFETY: any number is an error of OpenSSL's; this one is.
                store_context.set_error(unsafe { X509VerifyResult::from_raw(unknown) });
                return 0;
            }
        }
    }
    // SAFETY: the context is what OpenSSL itself would verify now.
    let verified = unsafe { openssl_sys::X509_verify_cert(context) };
    if verified == 1
        && let Some(((_, digest), chain)) = asked.zip(store_context.chain())
    {
        trust.keep(digest, chain);
    }
    verified
}

/// Of every byte of every certificate that the client sent.
fn digest(client: &X509Ref, sent: Option<&StackRef<X509>>) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(&client.to_der().ok()?);
    for cert in sent.into_iter().flatten() {
        hash.update(&cert.to_der().ok()?);
    }
    Some(hash.finish())
}

impl ClientTrust {
    fn find(&self, digest: &[u8; 32], now: i64) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()?;
        // Beyond its dates OpenSSL is asked again, and says what is wrong.
        (known.not_before <= now && now < known.not_after).then_some(known)
    }

    fn keep(&self, digest: [u8; 32], chain: &StackRef<X509>) {
        let dates = chain.iter().map(|cert| (unix_seconds(cert.not_before()), unix_seconds(cert.not_after())));
        let (not_before, not_after) = dates.fold((i64::MIN, i64::MAX), |(from, to), (not_before, not_after)| {
            (from.max(not_before), to.min(not_after))
        });
        let issuers = chain.iter().skip(1).map(ToOwned::to_owned).collect();
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            // More partners than that: each is verified once in a while, and no order has to be kept.
            all.clear();
        }
        all.insert(digest, Known { issuers, not_before, not_after });
    }
}

/// How many chains the context of `ssl` knows.
#[cfg(test)]
pub(super) fn known_to(ssl: &openssl::ssl::SslRef) -> usize {
    ssl.ssl_context().ex_data(index().unwrap()).unwrap().known.lock().unwrap().len()
}

impl Known {
    fn chain(&self, client: &X509Ref) -> Result<Stack<X509>, ErrorStack> {
        let mut chain = Stack::new()?;
        chain.push(client.to_owned())?;
        for issuer in self.issuers.iter() {
            chain.push(issuer.clone())?;
        }
        Ok(chain)
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
    fn X509_STORE_CTX_get0_untrusted(context: *const openssl_sys::X509_STORE_CTX) -> *mut openssl_sys::stack_st_X509;
    fn X509_STORE_CTX_set0_trusted_stack(
        context: *mut openssl_sys::X509_STORE_CTX,
        trusted: *mut openssl_sys::stack_st_X509,
    );
    fn X509_STORE_CTX_set0_verified_chain(
        context: *mut openssl_sys::X509_STORE_CTX,
        chain: *mut openssl_sys::stack_st_X509,
    );
}
