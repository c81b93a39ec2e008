//! Connections to the database: made when they are needed and again when they were lost, and what the database's errors
//! mean to us.

use super::tls::{self, Connector};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Connection, Row, Socket, Statement};

/// Readers share this many connections, on which queries follow each other without waiting for answers.
const READERS: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read is tried again while the database is away: longer than it takes to restart or to change its leader.
const READ_PATIENCE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A connection with the statements that it knows already.
pub struct Session {
    client: Client,
    statements: parking_lot::Mutex<HashMap<&'static str, Statement>>,
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Session {
    pub async fn prepared(&self, sql: &'static str) -> std::result::Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().insert(sql, statement.clone());
        Ok(statement)
    }

    async fn run(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.prepared(sql).await?;
        self.client.query(&statement, parameters).await
    }
}

pub struct Connections {
    config: Config,
    tls: Connector,
    readers: [Mutex<Option<Arc<Session>>>; READERS],
    turn: AtomicUsize,
}

impl Connections {
    /// `schema` holds the tables. A server that vanishes within a transaction must not hold up the others for long, and no
    /// setting of the database may make an acknowledged commit less than durable. Every plan is by an index, whatever
    /// the database thinks of the tables' sizes, and compiling a plan takes longer than these queries ever do. A list of ten
    /// thousand objects is sorted in memory.
    pub fn new(url: &str, schema: &str) -> Result<Connections> {
        let (url, settings) = tls::split(url)?;
        let mut config: Config = url.parse().map_err(|e| error("open", e))?;
        let options = format!(
            "{} -c search_path={schema} -c synchronous_commit=on -c default_transaction_isolation=read\\ committed \
             -c idle_in_transaction_session_timeout=10s -c statement_timeout=60s -c lock_timeout=10s \
             -c client_min_messages=warning -c jit=off -c enable_seqscan=off -c work_mem=32MB",
            config.get_options().unwrap_or_default()
        );
        config.ssl_mode(settings.mode).options(options.trim_start()).application_name("coxswain");
        // A host that has gone without a word is noticed within half a minute.
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(25));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // Of several hosts only the one that takes writes will do.
        if config.get_hosts().len() > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let tls = settings.connector()?;
        Ok(Connections { config, tls, readers: Default::default(), turn: AtomicUsize::new(0) })
    }

    /// A connection that the caller drives.
    pub async fn raw(
        &self,
    ) -> std::result::Result<(Client, Connection<Socket, tls::Stream<Socket>>), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }

    /// A connection of one's own.
    pub async fn connect(&self) -> std::result::Result<Session, tokio_postgres::Error> {
        let (client, connection) = self.raw().await?;
        // The task ends with the client, or with the connection, which the client then tells.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = describe(&error), "a connection to the database was lost");
            }
        });
        Ok(Session { client, statements: parking_lot::Mutex::default() })
    }

    async fn reader(&self) -> std::result::Result<(usize, Arc<Session>), tokio_postgres::Error> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % READERS;
        let mut slot = self.readers[turn].lock().await;
        if let Some(session) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok((turn, session.clone()));
        }
        let session = Arc::new(self.connect().await?);
        *slot = Some(session.clone());
        Ok((turn, session))
    }

    /// Runs a statement that may be run twice without harm. While the database is away it is tried again for a time.
    pub async fn rows(
        &self,
        operation: &'static str,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let begun = Instant::now();
        loop {
            let failure = match self.reader().await {
                Ok((turn, session)) => match session.run(sql, parameters).await {
                    Ok(rows) => return Ok(rows),
                    Err(failure) => {
                        let mut slot = self.readers[turn].lock().await;
                        if passes(&failure) && slot.as_ref().is_some_and(|now| Arc::ptr_eq(now, &session)) {
                            *slot = None;
                        }
                        failure
                    }
                },
                Err(failure) => failure,
            };
            if !passes(&failure) || begun.elapsed() > READ_PATIENCE {
                return Err(error(operation, failure));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    #[cfg(test)]
    pub async fn session(&self) -> Arc<Session> {
        self.reader().await.unwrap().1
    }
}

/// Whether the failure is one that passes when the same is tried again on a new connection: the server is restarting or
/// has handed over to another, or a transaction was in the way of another.
pub fn passes(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        // Without a word of the server: the connection is gone, or could not be made. What the library refuses by itself
        // (a value of a wrong type, a bad certificate) does not pass.
        return error.is_closed() || io_failure(error);
    };
    let class = &code.code()[..2];
    class == "08"
        || [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            // A server that was demoted; another one takes writes now.
            SqlState::READ_ONLY_SQL_TRANSACTION,
            // The tables were changed under a prepared statement.
            SqlState::FEATURE_NOT_SUPPORTED,
        ]
        .contains(code)
}

/// Whether the server itself said that it has not done it.
pub fn undone(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| !matches!(&code.code()[..2], "08" | "57" | "40"))
        || error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
        || error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED)
}

fn io_failure(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            // A handshake that was refused for a certificate comes as invalid data.
            return io.kind() != std::io::ErrorKind::InvalidData;
        }
        source = cause.source();
    }
    // No host of several is the one wanted, or a connection took too long: both are told without a cause.
    error.to_string().contains("connect")
}

pub fn error(operation: &'static str, error: tokio_postgres::Error) -> Error {
    match error.code() {
        Some(code) if *code == SqlState::DISK_FULL => Error::NoSpace(describe(&error)),
        Some(code) if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED => {
            Error::Corrupt { place: "the database".to_owned(), what: describe(&error) }
        }
        _ => Error::Unavailable { operation, source: describe(&error).into() },
    }
}

/// The error with what the database said, which the library's own text leaves out.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {}", said.severity(), said.message()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
