//! As much HTTP/1.1 as a test needs: one request a connection on the client's side, keep-alive on the server's.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A body longer than this is cut off.
const BODY_BYTES_MAX: u64 = 1 << 20;
const HEAD_LINES_MAX: usize = 100;

pub struct Request {
    pub path: String,
    pub query: Vec<(String, String)>,
    pub close: bool,
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// Reads the next request; none at the end of the connection.
    pub fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
        let mut line = String::new();
        if from.take(8192).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let target = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let old = line.contains("HTTP/1.0");
        let headers = read_headers(from)?;
        let length = header(&headers, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0u64);
        io::copy(&mut from.take(length.min(BODY_BYTES_MAX)), &mut io::sink())?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = query.split('&').filter_map(|p| p.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect();
        let close = old || header(&headers, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        Ok(Some(Request { path: path.to_owned(), query, close, headers }))
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

pub fn respond(to: &mut TcpStream, code: u16, body: &str, close: bool) -> io::Result<()> {
    let reason = if code == 200 { "OK" } else { "Error" };
    let connection = if close { "close" } else { "keep-alive" };
    let answer = format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
        body.len()
    );
    to.write_all(answer.as_bytes())
}

/// Asks `http://host[:port]/path`, on a connection of its own. Returns the status code and the body.
pub fn get(url: &str, timeout: Duration) -> io::Result<(u16, String)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {url}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| invalid("not an http URL"))?;
    let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, p.to_owned()));
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let address = address.to_socket_addrs()?.next().ok_or_else(|| invalid("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut from = BufReader::new(stream);
    let mut line = String::new();
    from.read_line(&mut line)?;
    let code = line.split_whitespace().nth(1).and_then(|c| c.parse().ok());
    let code =
        code.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer"))?;
    let headers = read_headers(&mut from)?;
    let length = header(&headers, "content-length").and_then(|v| v.parse().ok()).unwrap_or(BODY_BYTES_MAX);
    let mut body = Vec::new();
    from.take(length.min(BODY_BYTES_MAX)).read_to_end(&mut body)?;
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

fn read_headers(from: &mut BufReader<TcpStream>) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for _ in 0..HEAD_LINES_MAX {
        let mut line = String::new();
        from.take(8192).read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    Ok(headers)
}

pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if bytes[i] == b'+' { b' ' } else { bytes[i] });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
