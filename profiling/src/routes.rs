//! The answers to requests under `/debug/pprof` and `/debug/flags` (upstream: `apiserver/pkg/server/routes/profiling.go` and `flags.go`,
//! Go's `net/http/pprof`).
//!
//! Who may ask is settled before. [`answer`] has the paths as most components serve them; the kubelet, whose paths differ, puts them
//! together from the single answers.

use crate::{cpu, image, verbosity};
use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Response, StatusCode};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

pub type Answer = Response<Bytes>;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const SECONDS_BY_DEFAULT: i64 = 30;
/// Addresses that are looked up in one request.
const ADDRESSES_MAX: usize = 1 << 16;

/// What is asked.
pub struct Asked<'a> {
    pub method: &'a Method,
    /// Without escapes.
    pub path: &'a str,
    /// As it stands in the URL.
    pub query: &'a str,
    /// Read in any case, as some clients lose an answer that comes before they have sent all; or why it cannot be read.
    pub body: Result<Bytes, String>,
}

/// The answer of the API server, the scheduler and the controller managers; none for paths of others.
pub async fn answer(asked: Asked<'_>) -> Option<Answer> {
    let rest = asked.path.strip_prefix("/debug/")?;
    Some(match rest {
        "pprof" => moved(asked.method, "/debug/pprof/", StatusCode::FOUND, "Found"),
        "pprof/" => index(&["profile", "symbol"]),
        "pprof/profile" => profile(asked.query).await,
        "pprof/symbol" => symbol(asked).await,
        "flags/v" => set_verbosity(asked),
        "flags" => flags(),
        _ if rest.starts_with("pprof/") => unknown(),
        _ if rest.starts_with("flags/") => flags(),
        _ => return None,
    })
}

/// Profiles the process for as long as the query says.
pub async fn profile(query: &str) -> Answer {
    let seconds = parameter(query, "seconds").and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let seconds: i64 = seconds.unwrap_or(SECONDS_BY_DEFAULT);
    match cpu::profile(Duration::from_secs(seconds.unsigned_abs())).await {
        Ok(file) => {
            let mut answer = of_type(StatusCode::OK, "application/octet-stream", file);
            let name = HeaderValue::from_static("attachment; filename=\"profile\"");
            answer.headers_mut().insert(CONTENT_DISPOSITION, name);
            answer
        }
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, format!("Could not enable CPU profiling: {error}\n")),
    }
}

/// The names of functions by addresses that stand, joined by `+`, in the query or the body.
pub async fn symbol(asked: Asked<'_>) -> Answer {
    // Clients only look whether there are any.
    let mut out = String::from("num_symbols: 1\n");
    let mut trouble = None;
    let list = if asked.method == Method::POST {
        match asked.body {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            Err(why) => {
                trouble = Some(why);
                String::new()
            }
        }
    } else {
        asked.query.to_owned()
    };
    let wanted: Vec<u64> = list.split('+').filter_map(number).filter(|a| *a != 0).take(ADDRESSES_MAX).collect();
    if !wanted.is_empty() {
        let mut sorted = wanted.clone();
        sorted.sort_unstable();
        sorted.dedup();
        // Reads files.
        let found = tokio::task::spawn_blocking(move || {
            let names = image::mapped().map(|files| image::names(&files, &sorted)).unwrap_or_default();
            (sorted, names)
        });
        let (sorted, names) = found.await.unwrap_or_default();
        for address in wanted {
            let name = sorted.binary_search(&address).ok().and_then(|at| names.get(at)?.as_ref());
            if let Some(name) = name {
                let _ = writeln!(out, "{address:#x} {}", name.readable);
            }
        }
    }
    if let Some(why) = trouble {
        let _ = writeln!(out, "reading request: {why}");
    }
    of_type(StatusCode::OK, TEXT, out)
}

/// The command line of the process, its arguments separated by NUL.
pub fn cmdline() -> Answer {
    let arguments: Vec<Vec<u8>> = std::env::args_os().map(|a| a.as_bytes().to_vec()).collect();
    of_type(StatusCode::OK, TEXT, arguments.join(&0))
}

/// For a profile that this process does not have.
pub fn unknown() -> Answer {
    refused(StatusCode::NOT_FOUND, "Unknown profile\n".to_owned())
}

/// Changes the level of the log to what the body says.
pub fn set_verbosity(asked: Asked<'_>) -> Answer {
    let (code, text) = if asked.method != Method::PUT {
        (StatusCode::NOT_ACCEPTABLE, "unsupported http method".to_owned())
    } else {
        match asked.body {
            Err(why) => (StatusCode::BAD_REQUEST, format!("error reading request body: {why}")),
            Ok(body) => match verbosity::set(&String::from_utf8_lossy(&body)) {
                Ok(done) => (StatusCode::OK, done),
                Err(why) => (StatusCode::BAD_REQUEST, why),
            },
        }
    };
    of_type(code, "text/plain", text + "\n")
}

/// As Go's `http.Redirect`.
pub fn moved(method: &Method, to: &'static str, code: StatusCode, reason: &str) -> Answer {
    let mut answer = Answer::new(Bytes::new());
    *answer.status_mut() = code;
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static(to));
    if matches!(*method, Method::GET | Method::HEAD) {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(HTML));
    }
    if method == Method::GET {
        *answer.body_mut() = format!("<a href=\"{to}\">{reason}</a>.\n\n").into();
    }
    answer
}

/// A page for people, with the profiles that there are.
fn index(names: &[&str]) -> Answer {
    let about = |name: &str| match name {
        "profile" => {
            "where the processor's time goes: for 30 seconds, or as many as <code>?seconds=</code> says; read it with <code>go tool pprof</code>"
        }
        _ => "the names of functions by their addresses, several of them joined by <code>+</code>",
    };
    let mut page = String::from("<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n/debug/pprof/\n<ul>\n");
    for name in names {
        let _ = writeln!(page, "<li><a href='{name}'>{name}</a>: {}</li>", about(name));
    }
    page.push_str("</ul>\n</body>\n</html>\n");
    of_type(StatusCode::OK, HTML, page)
}

/// A page with the flags that can be changed.
fn flags() -> Answer {
    let page = "<html>\n<head>\n<title>/debug/flags/</title>\n</head>\n<body>\n/debug/flags/<br>\n<br>\nflags:<br>\n<table>\n\
                <tr>v<br>\n</table>\n<br>\nfull flags configurable<br>\n</body>\n</html>\n";
    let mut answer = of_type(StatusCode::OK, HTML, page);
    answer.headers_mut().remove(X_CONTENT_TYPE_OPTIONS);
    answer
}

fn of_type(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(body.into());
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn refused(code: StatusCode, text: String) -> Answer {
    let mut answer = of_type(code, TEXT, text);
    answer.headers_mut().insert(HeaderName::from_static("x-go-pprof"), HeaderValue::from_static("1"));
    answer
}

/// The first value of a parameter. Only numbers are asked for, which need no unescaping.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value)
}

/// A number as Go's `strconv.ParseUint` reads it when the text says the base.
fn number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let of_base = |prefix, base| lower.strip_prefix(prefix).map(|digits| u64::from_str_radix(digits, base));
    let found = of_base("0x", 16).or_else(|| of_base("0b", 2)).or_else(|| of_base("0o", 8));
    let found = found.or_else(|| of_base("0", 8).filter(|_| lower.len() > 1)).unwrap_or_else(|| lower.parse());
    found.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(method: Method, path: &str, query: &str, body: &'static str) -> Option<Answer> {
        answer(Asked { method: &method, path, query, body: Ok(Bytes::from_static(body.as_bytes())) }).await
    }

    async fn code_and_text(method: Method, path: &str, body: &'static str) -> (u16, String) {
        let answer = ask(method, path, "", body).await.expect("a path of ours");
        (answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned())
    }

    #[tokio::test]
    async fn the_level_of_the_log_is_put() {
        let wrong = (406, "unsupported http method\n".to_owned());
        assert_eq!(code_and_text(Method::GET, "/debug/flags/v", "").await, wrong);
        assert_eq!(code_and_text(Method::POST, "/debug/flags/v", "4").await, wrong);
        let done = (200, "successfully set klog.logging.verbosity to 3\n".to_owned());
        assert_eq!(code_and_text(Method::PUT, "/debug/flags/v", "3").await, done);
        let refused = (400, "strconv.ParseUint: parsing \"x\": invalid syntax\n".to_owned());
        assert_eq!(code_and_text(Method::PUT, "/debug/flags/v", "x").await, refused);
        let body = Err("gone".to_owned());
        let asked = Asked { method: &Method::PUT, path: "/debug/flags/v", query: "", body };
        let answer = answer(asked).await.expect("a path of ours");
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (400, &b"error reading request body: gone\n"[..]));
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain");
    }

    #[tokio::test]
    async fn profiles_of_another_runtime_are_unknown() {
        for path in ["goroutine", "heap", "trace", "cmdline", "profile/", "/profile"] {
            let path = format!("/debug/pprof/{path}");
            assert_eq!(code_and_text(Method::GET, &path, "").await, (404, "Unknown profile\n".to_owned()));
        }
        assert!(ask(Method::GET, "/debug", "", "").await.is_none());
        assert!(ask(Method::GET, "/debug/", "", "").await.is_none());
        assert!(ask(Method::GET, "/debug/pprofs", "", "").await.is_none());
        assert!(ask(Method::GET, "/debug//flags/v", "", "").await.is_none());
    }

    #[tokio::test]
    async fn the_index_lies_below_a_slash() {
        let answer = ask(Method::GET, "/debug/pprof", "", "").await.expect("a path of ours");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()[LOCATION]),
            (302, &HeaderValue::from_static("/debug/pprof/"))
        );
        assert_eq!(&answer.body()[..], b"<a href=\"/debug/pprof/\">Found</a>.\n\n");
        let answer = ask(Method::POST, "/debug/pprof", "", "").await.expect("a path of ours");
        assert!(answer.body().is_empty() && !answer.headers().contains_key(CONTENT_TYPE));
        let (code, page) = code_and_text(Method::GET, "/debug/pprof/", "").await;
        assert!(code == 200 && page.contains("<a href='profile'>") && !page.contains("goroutine"), "{page}");
        let (_, page) = code_and_text(Method::GET, "/debug/flags/x", "").await;
        assert!(page.contains("<tr>v<br>"), "{page}");
    }

    #[tokio::test]
    async fn addresses_have_names() {
        let address = addresses_have_names as fn() as usize;
        let query = format!("0x1+{address:#x}+{address}+junk");
        let answer = ask(Method::GET, "/debug/pprof/symbol", &query, "").await.expect("a path of ours");
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "num_symbols: 1");
        assert_eq!(lines.len(), 3, "{text}");
        let expected = format!("{address:#x} ");
        assert!(lines[1..].iter().all(|l| l.starts_with(&expected) && l.ends_with("addresses_have_names")), "{text}");
        let answer = ask(Method::POST, "/debug/pprof/symbol", &query, "0").await.expect("a path of ours");
        assert_eq!(&answer.body()[..], b"num_symbols: 1\n");
    }

    #[test]
    fn numbers_say_their_base() {
        let numbers = ["0x1F", "017", "0b11", "0o17", "10", "0", "", "-1", "0x"].map(number);
        let expected = [Some(31), Some(15), Some(3), Some(15), Some(10), Some(0), None, None, None];
        assert_eq!(numbers, expected);
        assert_eq!(parameter("a=1&seconds=5&seconds=6", "seconds"), Some("5"));
        assert_eq!(parameter("secondss=1", "seconds"), None);
    }
}
