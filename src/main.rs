//! `hive-gateway`: see [`hive_gateway::cli`] for the commands.

use std::ffi::{c_char, c_int, c_void};
use std::process::ExitCode;

use clap::Parser;
use hive_gateway::cli::Cli;
use libmimalloc_sys::{mi_free, mi_malloc, mi_realloc};

// Less memory for each connection than glibc's, and less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lend_allocator_to_openssl();
    // Before anything else asks OpenSSL for something: that would have it clean up when the process exits, beneath threads that
    // still use it (SIGSEGV). This tells it not to; the system takes everything back.
    openssl::init();
    hive_gateway::cli::prepare(std::env::args_os().nth(1).as_deref());
    hive_gateway::cli::run(Cli::parse())
}

/// OpenSSL takes and gives back some thousand pieces in each handshake.
fn lend_allocator_to_openssl() {
    // SAFETY: the functions do what OpenSSL asks of an allocator, and nothing has been taken from another one yet: in that
    // case, which can't be at the process' start, OpenSSL keeps what it has.
    unsafe { CRYPTO_set_mem_functions(Some(take), Some(resize), Some(give_back)) };
}

type Take = unsafe extern "C" fn(usize, *const c_char, c_int) -> *mut c_void;
type Resize = unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void;
type GiveBack = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

// What the `openssl` crate lacks; crypto.h, the same from 1.1.0 to 3.6. The last two arguments of each tell who asks.
unsafe extern "C" {
    fn CRYPTO_set_mem_functions(take: Option<Take>, resize: Option<Resize>, give_back: Option<GiveBack>) -> c_int;
}

unsafe extern "C" fn take(size: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    // SAFETY: any size will do.
    unsafe { mi_malloc(size) }
}

unsafe extern "C" fn resize(piece: *mut c_void, size: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    // SAFETY: the piece is OpenSSL's, from one of these functions.
    unsafe { mi_realloc(piece, size) }
}

unsafe extern "C" fn give_back(piece: *mut c_void, _file: *const c_char, _line: c_int) {
    // SAFETY: the piece is OpenSSL's, from one of these functions, and not used again.
    unsafe { mi_free(piece) }
}
