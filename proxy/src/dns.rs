//! The cluster's DNS server, the counterpart of CoreDNS with its `kubernetes`, `cache` and `forward` plugins.
//!
//! [`zone`] answers for the cluster from what informers hold, [`forward`] asks others for the rest, and this file talks
//! over UDP and TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::{Client, Informers};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;

mod forward;
mod zone;

use forward::Forward;
use zone::{Found, Zone};

/// Queries being answered at once; more are refused.
const QUERIES_MAX: usize = 1000;
const CONNECTIONS_MAX: usize = 200;
const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(10);
/// The largest answer over UDP, which passes any network in one piece.
const UDP_BYTES_MAX: u16 = 1232;
/// An alias may lead to an alias, but not for ever.
const ALIASES_MAX: usize = 8;

#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses that answer over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    pub cluster_domain: String,
    /// Who answers for names outside the cluster.
    pub upstream: Vec<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            upstream: resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        }
    }
}

/// The name servers of a resolv.conf.
fn resolvers(conf: &str) -> Vec<SocketAddr> {
    let servers = conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.trim().parse().ok().map(|ip| SocketAddr::new(ip, 53))).collect()
}

struct Server {
    zone: Zone,
    forward: Forward,
    queries: Semaphore,
}

/// Answers until the shutdown.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let informers = Informers::new(client);
    let zone = Zone::new(&config.cluster_domain, &informers)
        .ok_or_else(|| Error::Config(format!("{:?} is not a domain", config.cluster_domain)))?;
    let upstream = config.upstream.iter().copied().filter(|u| !config.listen.contains(u)).collect();
    let server = Arc::new(Server { zone, forward: Forward::new(upstream), queries: Semaphore::new(QUERIES_MAX) });
    let mut tasks = JoinSet::new();
    for address in &config.listen {
        let udp = Arc::new(UdpSocket::bind(address).await?);
        let tcp = TcpListener::bind(address).await?;
        tasks.spawn(serve_udp(server.clone(), udp));
        tasks.spawn(serve_tcp(server.clone(), tcp));
    }
    shutdown.cancelled().await;
    tasks.abort_all();
    informers.stop();
    Ok(())
}

async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An earlier answer that could not be delivered: nothing to do with the next query.
            tokio::task::yield_now().await;
            continue;
        };
        let query = buffer[..length].to_vec();
        let (server, socket) = (server.clone(), socket.clone());
        // `answer` itself limits how many are under way; what is beyond is refused at once.
        tokio::spawn(async move {
            if let Some((answer, max)) = server.answer(&query, true).await
                && let Some(bytes) = fit(answer, max)
            {
                let _ = socket.send_to(&bytes, from).await;
            }
        });
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    let _ = connection(&server, stream).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let query = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            Ok::<_, std::io::Error>(query)
        };
        let Ok(query) = tokio::time::timeout(CONNECTION_IDLE_MAX, query).await else { return Ok(()) };
        let Some((answer, _)) = server.answer(&query?, false).await else { return Ok(()) };
        let Some(bytes) = fit(answer, u16::MAX) else { return Ok(()) };
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend(bytes);
        stream.write_all(&framed).await?;
    }
}

/// The bytes of an answer, cut down to what the client takes.
fn fit(mut answer: Message, max: u16) -> Option<Vec<u8>> {
    loop {
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= usize::from(max) {
            return Some(bytes);
        }
        if !answer.additionals.is_empty() {
            // Only a courtesy: the answer is complete without.
            answer.additionals.clear();
        } else if !answer.answers.is_empty() {
            answer.metadata.truncation = true;
            answer.answers.truncate(answer.answers.len() / 2);
        } else if !answer.authorities.is_empty() {
            answer.authorities.clear();
        } else {
            return None;
        }
    }
}

impl Server {
    /// The answer to a packet, and how large it may be over UDP. What is no query gets none.
    async fn answer(&self, packet: &[u8], udp: bool) -> Option<(Message, u16)> {
        let query = match Message::from_vec(packet) {
            Ok(query) if query.metadata.message_type == MessageType::Query => query,
            Ok(_) => return None,
            Err(_) => {
                let id = u16::from_be_bytes(packet.get(..2)?.try_into().ok()?);
                // Nothing answers an answer.
                let is_query = packet.get(2).is_some_and(|flags| flags & 0x80 == 0);
                return is_query.then(|| (Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), 512));
            }
        };
        let max = query.max_payload().min(UDP_BYTES_MAX);
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.queries = query.queries.clone();
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            answer.edns = Some(edns);
        }
        if query.metadata.op_code != OpCode::Query || query.queries.len() != 1 {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some((answer, max));
        }
        let Ok(_permit) = self.queries.try_acquire() else {
            answer.metadata.response_code = ResponseCode::Refused;
            return Some((answer, max));
        };
        self.resolve(&query, &mut answer, udp).await;
        Some((answer, max))
    }

    async fn resolve(&self, query: &Message, answer: &mut Message, udp: bool) {
        let mut question = query.queries[0].clone();
        for _ in 0..ALIASES_MAX {
            match self.zone.find(&question.name, question.query_type) {
                Found::Elsewhere => return self.forward.resolve(&question, answer, udp).await,
                Found::Unready => {
                    answer.metadata.response_code = ResponseCode::ServFail;
                    return;
                }
                Found::Alias(record, target) => {
                    answer.metadata.authoritative = true;
                    answer.answers.push(*record);
                    if question.query_type == hickory_proto::rr::RecordType::CNAME {
                        return;
                    }
                    question.set_name(target);
                }
                Found::Records { answers, additionals } => {
                    answer.metadata.authoritative = true;
                    if answers.is_empty() {
                        answer.authorities.push(self.zone.soa());
                    }
                    answer.answers.extend(answers);
                    answer.additionals.extend(additionals);
                    return;
                }
                Found::NoName => {
                    answer.metadata.authoritative = true;
                    answer.metadata.response_code = ResponseCode::NXDomain;
                    answer.authorities.push(self.zone.soa());
                    return;
                }
            }
        }
        answer.metadata.response_code = ResponseCode::ServFail;
    }
}
