//! The status page: one file, which asks the API for what it shows. Nothing is loaded from elsewhere.

use std::sync::LazyLock;

use openssl::base64::encode_block;
use openssl::sha::sha256;

/// The page and the policy that a browser holds it to.
pub(super) struct Page {
    pub(super) html: &'static str,
    /// `Content-Security-Policy`.
    pub(super) policy: String,
}

/// Made once.
pub(super) static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let html = include_str!("page.html");
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(html, "<script>", "</script>"),
        hash(html, "<style>", "</style>"),
    );
    Page { html, policy }
});

/// The source expression of the one element between these tags (Content Security Policy Level 3, section 2.3.1).
fn hash(html: &str, open: &str, close: &str) -> String {
    let inside = html.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(inside, _)| inside);
    format!("'sha256-{}'", encode_block(&sha256(inside.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file_with_one_script_and_one_style_and_says_so_to_the_browser() {
        let Page { html, policy } = &*PAGE;
        for tag in ["<script", "</script>", "<style", "</style>"] {
            assert_eq!(html.matches(tag).count(), 1, "{tag}");
        }
        for outside in
            ["http://", "https://", "//cdn", "<link rel=\"stylesheet\"", "@import", "url(", "onclick=", "style=\""]
        {
            let found = html.replace("http://www.w3.org/2000/svg", "").matches(outside).count();
            assert_eq!(found, 0, "{outside}");
        }
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"] {
            assert!(!html.contains(unsafe_way), "{unsafe_way}");
        }
        assert!(!policy.contains("unsafe") && policy.matches("'sha256-").count() == 2, "{policy}");
        assert!(html.len() < 100_000, "{}", html.len());
    }
}
