//! Asks the machine's own resolvers for names outside the cluster, and keeps their answers for a short while.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Answers kept, and how long at most, as CoreDNS does in clusters.
const KEPT_MAX: usize = 4096;
const KEPT_SECONDS_MAX: u32 = 30;
const NEGATIVE_SECONDS_MAX: u32 = 5;
/// One resolver has this long; then the next is asked. Together it is less than clients wait.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(2);
const ATTEMPTS_MAX: usize = 2;
const UDP_BYTES_MAX: u16 = 1232;

struct Kept {
    message: Message,
    at: Instant,
    seconds: u32,
}

pub struct Forward {
    upstream: Vec<SocketAddr>,
    kept: Mutex<HashMap<(String, RecordType), Kept>>,
}

impl Forward {
    pub fn new(upstream: Vec<SocketAddr>) -> Self {
        Self { upstream, kept: Mutex::default() }
    }

    /// Adds what the resolvers say to an answer.
    pub async fn resolve(&self, question: &Query, answer: &mut Message, udp: bool) {
        let key = (question.name.to_ascii().to_lowercase(), question.query_type);
        if let Some(found) = self.recall(&key) {
            return take(found, answer);
        }
        let mut order = self.upstream.clone();
        order.shuffle(&mut rand::rng());
        for address in order.iter().cycle().take(ATTEMPTS_MAX.min(order.len() * 2)) {
            match tokio::time::timeout(ATTEMPT_TIME_MAX, ask(*address, question, udp)).await {
                Ok(Ok(found)) => {
                    self.keep(key, &found);
                    return take(found, answer);
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "a resolver failed"),
                Err(_) => tracing::debug!(%address, "a resolver did not answer in time"),
            }
        }
        answer.metadata.response_code = ResponseCode::ServFail;
    }

    fn recall(&self, key: &(String, RecordType)) -> Option<Message> {
        let mut kept = self.kept.lock();
        let found = kept.get(key)?;
        let age = found.at.elapsed().as_secs() as u32;
        if age >= found.seconds {
            kept.remove(key);
            return None;
        }
        let mut message = found.message.clone();
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn keep(&self, key: (String, RecordType), message: &Message) {
        let negative = message.answers.is_empty();
        let records = if negative { &message.authorities } else { &message.answers };
        let max = if negative { NEGATIVE_SECONDS_MAX } else { KEPT_SECONDS_MAX };
        let seconds = records.iter().map(|r| r.ttl).min().unwrap_or(0).min(max);
        let code = message.metadata.response_code;
        if seconds == 0
            || message.metadata.truncation
            || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
        {
            return;
        }
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, k| (k.at.elapsed().as_secs() as u32) < k.seconds);
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
        }
        kept.insert(key, Kept { message: message.clone(), at: Instant::now(), seconds });
    }
}

fn take(found: Message, answer: &mut Message) {
    answer.metadata.response_code = found.metadata.response_code;
    // After an alias of the cluster the outside's authority is not that of the answer.
    answer.metadata.authoritative = false;
    answer.metadata.truncation = found.metadata.truncation;
    answer.answers.extend(found.answers);
    answer.authorities.extend(found.authorities);
    answer.additionals.extend(found.additionals);
}

async fn ask(address: SocketAddr, question: &Query, udp: bool) -> std::io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.queries.push(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    query.edns = Some(edns);
    let bytes = query.to_vec().map_err(std::io::Error::other)?;
    if udp {
        let found = ask_udp(address, &query, &bytes).await?;
        if !found.metadata.truncation {
            return Ok(found);
        }
    }
    let mut stream = TcpStream::connect(address).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend(&bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    matching(&query, &buffer).ok_or_else(|| std::io::Error::other("the answer is not to the question"))
}

async fn ask_udp(address: SocketAddr, query: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    // A port of its own for each query, so that answers are hard to forge.
    let any: SocketAddr =
        if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(found) = matching(query, &buffer[..length]) {
            return Ok(found);
        }
    }
}

fn matching(query: &Message, packet: &[u8]) -> Option<Message> {
    let found = Message::from_vec(packet).ok()?;
    (found.metadata.id == query.metadata.id && found.queries == query.queries).then_some(found)
}
