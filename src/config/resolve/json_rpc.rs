//! `routes[].json_rpc`: what its calls may be.

use std::collections::HashMap;
use std::path::Path;

use super::routes::{BODY_MAX, list};
use super::{Resolver, patterns};
use crate::config::file::{JsonRpc, MethodSchema};
use crate::json_rpc::{MethodPolicy, ParamsSchema, SCHEMA_DEPTH_MAX};
use crate::units::Size;

pub(super) fn resolve(r: &mut Resolver<'_>, at: &str, mut rpc: JsonRpc, body: Size) -> JsonRpc {
    let depth = format!("{at}.max_depth");
    r.range(&depth, &rpc.max_depth, &(1..=512));
    if !rpc.schemas.is_empty() && (SCHEMA_DEPTH_MAX + 1..=512).contains(&rpc.max_depth) {
        r.error(&depth, format!("schemas look no deeper than {SCHEMA_DEPTH_MAX}; write at most that"));
    }
    if let Some(limit) = rpc.params_limit {
        let path = format!("{at}.params_limit");
        r.size(&path, limit, &(1..=BODY_MAX));
        if limit > body && limit.0 <= BODY_MAX {
            r.warn(&path, format!("{limit} is more than the whole body may have: {body}"));
        }
    }
    if let Some(methods) = &rpc.methods {
        let empty =
            "the list is empty, so no call would pass; write methods such as message/send, or leave the key out";
        list(r, &format!("{at}.methods"), methods, patterns::rpc_method, Some(empty));
    }
    // A list with an error in it lets nothing through, and that is not to be said twice.
    let allowed = MethodPolicy::new(rpc.methods.as_deref()).ok();
    let mut first = HashMap::new();
    for (i, schema) in rpc.schemas.iter_mut().enumerate() {
        let at = format!("{at}.schemas[{i}]");
        let method = format!("{at}.method");
        if let Some(other) = first.insert(schema.method.clone(), i).filter(|_| !r.has_guess(&method)) {
            r.error(&method, format!("{:?} has a schema already, schemas[{other}]", schema.method));
        }
        method_schema(r, &at, schema, allowed.as_ref());
    }
    rpc
}

fn method_schema(r: &mut Resolver<'_>, at: &str, schema: &mut MethodSchema, allowed: Option<&MethodPolicy>) {
    let method = format!("{at}.method");
    match patterns::rpc_method(&schema.method) {
        Err(why) => r.error(&method, why),
        Ok(name) if name.ends_with('*') => r.error(&method, "a schema is for one method; write its whole name"),
        Ok(name) if allowed.is_some_and(|a| !a.allows(&name)) => {
            r.warn(&method, format!("methods does not let {name:?} through, so its schema is never used"));
        }
        Ok(_) => {}
    }
    schema.file = r.material(&schema.file);
    let path = format!("{at}.file");
    if r.around.read_files
        && !r.has_guess(&path)
        && let Err(why) = ParamsSchema::load(Path::new(&schema.file))
    {
        r.error(&path, format!("the file {:?}: {why}", schema.file));
    }
}
