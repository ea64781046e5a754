//! Requests to the hub: where redirects may lead, which of them carry the token, what an answer's status means, and when
//! a request is tried again.

use std::io::Read;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::cache::{is_commit, is_etag};
use super::error::Error;
use super::{Hub, tls};
use crate::error::Result;
use crate::model_name::ModelName;
use crate::progress::LoadObserver;

const MAX_REDIRECTS: usize = 10;
/// How often a request is sent before its failure is final.
pub(super) const MAX_TRIES: u32 = 4;
/// The longest list of files that is read.
const MAX_LISTING_BYTES: u64 = 32 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence of a server after which a connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon a wait notices that it was cancelled.
const WAIT_SLICE: Duration = Duration::from_millis(50);

/// Requests about one repository.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    name: &'a ModelName,
    agent: Agent,
    /// Why encrypted connections are not possible, if so.
    no_tls: Option<Error>,
    observer: &'a LoadObserver,
    /// Whether one of several downloads has failed, so that the others need not go on.
    has_failed: AtomicBool,
}

/// A file as the hub announces it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) url: String,
    /// Where that leads for now, if it leads to another host.
    pub(super) contents: String,
    /// What names its contents: their SHA-256, or git's SHA-1 of small ones.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// The files of a repository at a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, name: &'a ModelName, observer: &'a LoadObserver) -> Self {
        let mut tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
        let no_tls = match tls::provider(hub.crypto_provider.as_ref()) {
            Ok(provider) => {
                tls = tls.unversioned_rustls_crypto_provider(provider);
                None
            }
            Err(error) => Some(error),
        };
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("qwen-rs/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT));
        // A server of this machine is reached without the proxy that the environment names.
        let config = if is_loopback(&hub.endpoint) { config.proxy(None) } else { config };
        Client { hub, name, agent: config.build().new_agent(), no_tls, observer, has_failed: AtomicBool::new(false) }
    }

    /// The files of the repository, and the commit that its revision is at.
    pub(super) fn list(&self) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (endpoint, repository) = (&self.hub.endpoint, self.name.repository());
        let url = format!("{endpoint}/api/models/{repository}/revision/{}", escaped(self.name.revision(), false));
        let response = self.get(&url, None)?;
        let invalid = |reason: String| Error::Protocol { url: url.clone(), reason };
        let mut text = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_LISTING_BYTES);
        body.read_to_end(&mut text).map_err(|error| Error::Network { url: url.clone(), reason: error.to_string() })?;
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|error| invalid(format!("the hub's list of files cannot be read: {error}")))?;
        if !is_commit(&answer.sha) {
            return Err(invalid(format!("{:?} is no commit", answer.sha)).into());
        }
        let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: answer.sha, files })
    }

    /// What the hub says about a file, without its contents.
    pub(super) fn announced(&self, commit: &str, file: &str) -> Result<Announced> {
        let (endpoint, repository) = (&self.hub.endpoint, self.name.repository());
        let url = format!("{endpoint}/{repository}/resolve/{commit}/{}", escaped(file, true));
        let response = self.tried(&url, |url| self.head(url))?;
        let Headers { etag, size, contents } = response;
        let invalid = |reason: String| Error::Protocol { url: url.clone(), reason };
        let etag = etag.ok_or_else(|| invalid("the hub names no checksum (ETag)".into()))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_etag(&etag) {
            return Err(invalid(format!("{etag:?} is no checksum")).into());
        }
        let size = size.ok_or_else(|| invalid("the hub names no size".into()))?;
        Ok(Announced { contents: contents.unwrap_or_else(|| url.clone()), url, etag, size })
    }

    /// The contents at `url`, or a range of them. An answer with the status 200, 206 or 416.
    pub(super) fn get(&self, url: &str, range: Option<Range>) -> Result<Response<Body>> {
        self.tried(url, |url| {
            let mut url = url.to_owned();
            for _ in 0..MAX_REDIRECTS {
                let response = self.once(&url, Some(range))?;
                match location(&response) {
                    Some(to) => url = join(&url, &to),
                    None => return Ok(Answer::of(response, |response| response)),
                }
            }
            Err(too_many_redirects(url))
        })
    }

    /// The checksum and the size in the headers. A redirect to another host leads to the contents, and is not followed;
    /// one within the host leads to the new name of a repository.
    fn head(&self, url: &str) -> Result<Answer<Headers>> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.once(&url, None)?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let linked = header("x-linked-etag").map(str::to_owned);
            let number = |name: &str| header(name).and_then(|value| value.parse().ok());
            match location(&response).map(|to| join(&url, &to)) {
                // The length of a redirect is that of its own text.
                Some(to) if linked.is_some() || origin(&to) != origin(&url) => {
                    let etag = linked.or_else(|| header("etag").map(str::to_owned));
                    let size = number("x-linked-size");
                    let contents = (origin(&to) != origin(&url)).then_some(to);
                    return Ok(Answer::Done(Headers { etag, size, contents }));
                }
                Some(to) => url = to,
                None => {
                    let etag = linked.or_else(|| header("etag").map(str::to_owned));
                    let size = number("x-linked-size").or_else(|| number("content-length"));
                    return Ok(Answer::of(response, |_| Headers { etag, size, contents: None }));
                }
            }
        }
        Err(too_many_redirects(url))
    }

    /// One request, without redirects: HEAD, or GET of everything or of a range.
    fn once(&self, url: &str, get: Option<Option<Range>>) -> Result<Response<Body>> {
        self.check()?;
        let refused = |reason: &str| Error::Protocol { url: url.to_owned(), reason: reason.into() };
        match (&self.no_tls, origin(url)) {
            (_, None) => return Err(refused("neither http:// nor https://").into()),
            (Some(Error::NoTls { missing }), Some(origin)) if origin.starts_with("https:") => {
                return Err(Error::NoTls { missing: missing.clone() }.into());
            }
            (_, Some(origin)) if origin.starts_with("http:") && self.hub.endpoint.starts_with("https:") => {
                return Err(refused("a redirect from an encrypted connection to one that is not").into());
            }
            _ => {}
        }
        let mut request = match get {
            None => self.agent.head(url),
            Some(_) => self.agent.get(url),
        };
        request = request.header("accept-encoding", "identity");
        if let Some(token) = &self.hub.token
            && origin(url) == origin(&self.hub.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(Some((start, end))) = get {
            // Both ends of a range in a header are part of it.
            let last = end.map_or_else(String::new, |end| (end - 1).to_string());
            request = request.header("range", format!("bytes={start}-{last}"));
        }
        Ok(request.call().map_err(|error| unreachable(url, &error))?)
    }

    /// Send a request until it is answered, or has been sent often enough.
    fn tried<T>(&self, url: &str, send: impl Fn(&str) -> Result<Answer<T>>) -> Result<T> {
        let mut tries = 1;
        loop {
            let (status, retry_after, code) = match send(url)? {
                Answer::Done(done) => return Ok(done),
                Answer::Refused { status, retry_after, code } => (status, retry_after, code),
            };
            let is_passing = matches!(status.as_u16(), 408 | 429 | 500..);
            let wait = retry_after.unwrap_or_else(|| self.backoff(tries));
            if is_passing && tries < MAX_TRIES && wait <= self.hub.max_wait {
                self.wait(wait)?;
                tries += 1;
                continue;
            }
            return Err(self.refused(url, status, retry_after, code.as_deref()).into());
        }
    }

    /// What a status that is no success means.
    fn refused(&self, url: &str, status: StatusCode, retry_after: Option<Duration>, code: Option<&str>) -> Error {
        let (repository, url) = (self.name.repository(), url.to_owned());
        let page = format!("{}/{repository}", self.hub.endpoint);
        let not_found = |name: String, reason: &str| Error::NotFound { name, reason: reason.into() };
        match (status.as_u16(), code.unwrap_or_default()) {
            (_, "GatedRepo") | (403, _) => Error::Forbidden { repository, page },
            (401, _) => Error::Unauthorized { repository },
            (404, "RevisionNotFound") => {
                not_found(format!("{repository}@{}", self.name.revision()), "the hub has no such revision")
            }
            (404, "EntryNotFound") => not_found(url, "the hub has no such file"),
            (404, _) => not_found(
                repository,
                "neither a path on this machine, nor a repository (with this revision) on the hub",
            ),
            (429, _) => Error::RateLimited { url, retry_after },
            (500.., _) => Error::Network { url, reason: format!("the hub answers {status}: try again later") },
            _ => Error::Protocol { url, reason: format!("the hub answers {status}") },
        }
    }

    /// How long to wait after this many tries.
    pub(super) fn backoff(&self, tries: u32) -> Duration {
        Duration::from_secs(1 << tries.min(6)).min(self.hub.max_wait)
    }

    /// Wait, unless the load is cancelled meanwhile.
    pub(super) fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.check()?;
            std::thread::sleep(left.min(WAIT_SLICE));
        }
        Ok(())
    }

    /// # Errors
    /// When the load was cancelled, or another download of this client has failed.
    pub(super) fn check(&self) -> Result<()> {
        match self.has_failed.load(Ordering::Relaxed) {
            true => Err(qwen_core::Error::Cancelled.into()),
            false => Ok(self.observer.check()?),
        }
    }

    pub(super) fn observer(&self) -> &'a LoadObserver {
        self.observer
    }

    /// Let all downloads of this client end.
    pub(super) fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }
}

/// From a byte on, up to another one or to the end.
type Range = (u64, Option<u64>);

/// What the headers of a file say.
struct Headers {
    etag: Option<String>,
    size: Option<u64>,
    /// The other host's URL that a redirect leads to.
    contents: Option<String>,
}

/// An answer, or a status that is none.
enum Answer<T> {
    Done(T),
    Refused { status: StatusCode, retry_after: Option<Duration>, code: Option<String> },
}

impl<T> Answer<T> {
    fn of(response: Response<Body>, done: impl FnOnce(Response<Body>) -> T) -> Self {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Answer::Done(done(response));
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        Answer::Refused { status, retry_after, code: header("x-error-code").map(str::to_owned) }
    }
}

fn location(response: &Response<Body>) -> Option<String> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let to = response.headers().get("location").filter(|_| is_redirect)?;
    Some(to.to_str().unwrap_or_default().to_owned())
}

fn too_many_redirects(url: String) -> crate::error::Error {
    Error::Protocol { url, reason: format!("more than {MAX_REDIRECTS} redirects") }.into()
}

fn unreachable(url: &str, error: &ureq::Error) -> Error {
    let reason = match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    };
    Error::Network { url: url.to_owned(), reason }
}

/// Scheme, host and port of a URL, in lower case.
fn origin(url: &str) -> Option<String> {
    let url = url.to_ascii_lowercase();
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let length = url.len() - rest.len() + end;
    url.get(..length).map(str::to_owned)
}

/// Whether a URL leads to this machine.
fn is_loopback(url: &str) -> bool {
    let origin = origin(url).unwrap_or_default();
    let host = origin.split_once("//").map_or("", |(_, host)| host);
    let host = host.strip_prefix('[').and_then(|host| host.split(']').next()).or_else(|| host.split(':').next());
    let host = host.unwrap_or_default();
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The URL that a redirect of `base` leads to.
fn join(base: &str, to: &str) -> String {
    let origin = origin(base).unwrap_or_default();
    if let Some(rest) = to.strip_prefix("//") {
        let scheme = base.split("//").next().unwrap_or_default();
        format!("{scheme}//{rest}")
    } else if to.starts_with('/') {
        format!("{origin}{to}")
    } else if to.contains("://") {
        to.to_owned()
    } else {
        let path = base.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rfind('/').filter(|end| *end >= origin.len()).map_or(path, |end| &path[..end]);
        format!("{folder}/{to}")
    }
}

/// Text as a part of a URL's path, or as several.
fn escaped(text: &str, with_slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if with_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_and_origins() {
        let base = "https://Hub.co:8080/a/b?x=1";
        assert_eq!(origin(base).as_deref(), Some("https://hub.co:8080"));
        assert_eq!(origin("http://h"), Some("http://h".into()));
        assert_eq!(origin("file:///etc/passwd"), None);
        assert_ne!(origin("https://hub.co"), origin("http://hub.co"));
        assert_ne!(origin("https://hub.co"), origin("https://hub.co.evil"));
        assert!(["http://127.0.0.1:80/x", "http://LOCALHOST", "https://[::1]:8080"].into_iter().all(is_loopback));
        assert!(
            !["http://127.0.0.1.evil.com", "https://hub.co", "file:///x", "http://[::2]"].into_iter().any(is_loopback)
        );
        assert_eq!(join(base, "/c"), "https://hub.co:8080/c");
        assert_eq!(join(base, "c"), "https://Hub.co:8080/a/c");
        assert_eq!(join(base, "//other/c"), "https://other/c");
        assert_eq!(join(base, "http://other/c"), "http://other/c");
        assert_eq!(join("http://h", "c"), "http://h/c");
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escaped("a/b ?#%", true), "a/b%20%3F%23%25");
    }
}
