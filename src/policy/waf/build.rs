//! Builds the few lines of C++ between the gateway and libmodsecurity; without the feature `waf`, nothing.

fn main() {
    println!("cargo::rerun-if-changed=src/policy/waf/shim.cc");
    #[cfg(feature = "waf")]
    {
        cc::Build::new().cpp(true).std("c++17").file("src/policy/waf/shim.cc").compile("hive_waf_shim");
        println!("cargo::rustc-link-lib=dylib=modsecurity");
    }
}
