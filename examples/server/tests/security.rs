//! Who may use a server: keys, hosts and origins; what of it is written down.

mod common;

use common::{Request, engine, question, serve, server};
use qwen_server::{ApiKey, Settings};
use serde_json::json;

const PATHS: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize"];

#[test]
fn without_a_key_nothing_but_files_and_health_is_open() {
    let mut settings = Settings::default();
    settings.api_keys = vec![ApiKey::new("first key"), ApiKey::new("second")];
    let server = serve(settings, Some(engine().clone()));
    for path in PATHS {
        for header in
            [None, Some("Bearer"), Some("Bearer "), Some("Bearer third"), Some("Basic second"), Some("second")]
        {
            let mut request = Request::post(path, "{}");
            if let Some(value) = header {
                request = request.header("authorization", value);
            }
            let response = server.send(&request);
            assert_eq!(response.error(401)["code"], "invalid_api_key", "{path} {header:?}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        }
    }
    for path in ["/v1/models", "/v1/models/qwen", "/metrics"] {
        server.get(path).error(401);
        assert_eq!(server.send(&Request::get(path).header("authorization", "bearer second")).status, 200);
    }
    for path in ["/health", "/", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let body = json!({"messages": question("Hi"), "max_tokens": 1}).to_string();
    let request = Request::post("/v1/chat/completions", body).header("authorization", "Bearer first key");
    server.send(&request).ok();
}

#[test]
fn other_names_of_this_machine_are_refused() {
    let mut settings = Settings::default();
    settings.allowed_hosts = vec!["llm.example.com".into()];
    let server = serve(settings, Some(engine().clone()));
    for host in ["localhost", "127.0.0.1:80", "[::1]", "llm.example.com", "llm.example.com:443"] {
        assert_eq!(server.send(&Request::get("/health").header("host", host)).status, 200, "{host}");
    }
    for host in ["evil.example.com", "localhost.evil.com", "127.0.0.1.evil.com:80", ""] {
        server.send(&Request::get("/v1/models").header("host", host)).error(403);
    }
}

#[test]
fn pages_of_other_sites_need_leave() {
    let origin = "https://app.example.com";
    let closed = server();
    // The server's own page may.
    let own = Request::get("/v1/models").header("host", "localhost:99").header("origin", "http://localhost:99");
    assert_eq!(closed.send(&own).status, 200);
    closed.send(&Request::get("/v1/models").header("origin", origin)).error(403);
    assert_eq!(closed.get("/v1/models").header("access-control-allow-origin"), None);

    let mut settings = Settings::default();
    settings.cors_origins = vec![origin.into()];
    settings.api_keys = vec![ApiKey::new("key")];
    let open = serve(settings, Some(engine().clone()));
    let preflight = open.send(&Request::get("/v1/chat/completions").method("OPTIONS").header("origin", origin));
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some(origin));
    assert!(preflight.header("access-control-allow-headers").unwrap().contains("authorization"));
    let asked = Request::get("/v1/models").header("origin", origin).header("authorization", "Bearer key");
    assert_eq!(open.send(&asked).header("access-control-allow-origin"), Some(origin));
    open.send(&Request::get("/v1/models").header("origin", "https://evil.com")).error(403);
}

#[test]
fn requests_have_ids() {
    let server = server();
    let (one, two) = (server.get("/health"), server.get("/health"));
    assert!(one.header("x-request-id").is_some_and(|id| !id.is_empty()));
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    let own = server.send(&Request::get("/health").header("x-request-id", "mine-1"));
    assert_eq!(own.header("x-request-id"), Some("mine-1"));
    // Errors too; and what does not belong in a log is no id.
    let odd = server.send(&Request::get("/nothing").header("x-request-id", "a b"));
    assert!(odd.header("x-request-id").is_some_and(|id| id != "a b"));
}

#[test]
fn heads_that_are_too_large_or_no_http_are_refused() {
    let server = server();
    let long = "x".repeat(200_000);
    let response = server.raw(format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n").as_bytes());
    assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&response));
    let many = "x: y\r\n".repeat(5000);
    let response = server.raw(format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n").as_bytes());
    assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 431"));
    for garbage in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ] {
        let response = server.raw(&[garbage, b"\r\n\r\n"].concat());
        assert!(
            response.is_empty() || response.starts_with(b"HTTP/1.1 400"),
            "{:?}",
            String::from_utf8_lossy(&response)
        );
    }
    let smuggled = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}";
    assert!(server.raw(smuggled).starts_with(b"HTTP/1.1 400"));
    assert_eq!(server.get("/health").status, 200);
}
