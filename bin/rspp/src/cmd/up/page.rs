//! The page, out of the program itself.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

/// Each file: where it is, what it is, what is in it.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html", include_str!("../../../page/index.html")),
    (
        "/page.css",
        "text/css",
        include_str!("../../../page/page.css"),
    ),
    (
        "/page.js",
        "text/javascript",
        include_str!("../../../page/page.js"),
    ),
    (
        "/line.js",
        "text/javascript",
        include_str!("../../../page/line.js"),
    ),
    (
        "/show.js",
        "text/javascript",
        include_str!("../../../page/show.js"),
    ),
    (
        "/sound.js",
        "text/javascript",
        include_str!("../../../page/sound.js"),
    ),
];

/// The page needs nothing from elsewhere, and gets nothing from there.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self' ws: wss:; img-src data:; worker-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(super) fn router() -> Router {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, text)| {
            router.route(path, get(async move || file(kind, text)))
        })
}

fn file(kind: &str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 5: small, and nothing from elsewhere.
    #[test]
    fn the_page_is_small_and_all_here() {
        let whole: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(whole < 64 << 10, "{whole} bytes");
        for (path, _, text) in FILES {
            for elsewhere in ["http://", "https://", "//cdn"] {
                assert!(!text.contains(elsewhere), "{path} names {elsewhere}");
            }
        }
    }
}
