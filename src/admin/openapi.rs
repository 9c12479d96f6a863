//! The API's description, for people and for programs.

/// OpenAPI 3.1. The tests hold it against the paths that there are; `tests/it/admin_api.rs` against the answers they give.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::admin::endpoint::Endpoint;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn every_path_and_method_is_described_and_no_other() {
        let document = document();
        let described: BTreeSet<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |m| (path.clone(), m.to_uppercase()))
            })
            .collect();
        let served: BTreeSet<_> = Endpoint::ALL
            .iter()
            .flat_map(|e| e.methods().iter().map(move |m| (e.path().to_owned(), m.as_str().to_owned())))
            .collect();
        assert_eq!(described, served);
    }

    #[test]
    fn what_needs_no_secret_says_so() {
        let document = document();
        for endpoint in Endpoint::ALL {
            for method in endpoint.methods() {
                let operation = &document["paths"][endpoint.path()][method.as_str().to_lowercase()];
                assert_eq!(operation.get("security").is_some(), endpoint.is_open(), "{endpoint:?}");
                assert_eq!(operation["responses"].get("401").is_none(), endpoint.is_open(), "{endpoint:?}");
                assert_eq!(operation["responses"].get("403").is_some(), endpoint.is_for_operators(), "{endpoint:?}");
            }
        }
    }

    #[test]
    fn every_schema_that_is_named_is_there_and_used() {
        let document = document();
        let schemas: BTreeSet<_> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
        let named = DOCUMENT.split("#/components/schemas/").skip(1);
        let named: BTreeSet<_> = named.map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
        assert_eq!(named, schemas);
    }
}
