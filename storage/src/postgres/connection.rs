//! Connections to the database: made when they are needed and again when they were lost, and what the database's errors
//! mean to us.

use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Statement};

/// Readers share this many connections, on which queries follow each other without waiting for answers.
const READERS: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

impl Session {
    pub fn new(client: Client) -> Session {
        Session { client, statements: parking_lot::Mutex::default() }
    }

    pub async fn prepared(&self, sql: &'static str) -> std::result::Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().insert(sql, statement.clone());
        Ok(statement)
    }
}

pub struct Connections {
    config: Config,
    readers: [Mutex<Option<Arc<Session>>>; READERS],
    turn: AtomicUsize,
}

impl Connections {
    /// `schema` holds the tables. A server that vanishes within a transaction must not hold up the others for long, and no
    /// setting of the database may make an acknowledged commit less than durable. Compiling plans takes longer than these
    /// queries ever do.
    pub fn new(url: &str, schema: &str) -> Result<Connections> {
        let mut config: Config = url.parse().map_err(|e| error("open", e))?;
        let options = format!(
            "{} -c search_path={schema} -c synchronous_commit=on -c default_transaction_isolation=read\\ committed \
             -c idle_in_transaction_session_timeout=10s -c client_min_messages=warning -c jit=off",
            config.get_options().unwrap_or_default()
        );
        config.options(options).application_name("coxswain").keepalives_idle(Duration::from_secs(10));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Connections { config, readers: Default::default(), turn: AtomicUsize::new(0) })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A connection of one's own.
    pub async fn connect(&self) -> Result<Session> {
        let (client, connection) = self.config.connect(NoTls).await.map_err(|e| error("connect", e))?;
        // The task ends with the client, or with the connection, which the client then tells.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "a connection to the database was lost");
            }
        });
        Ok(Session::new(client))
    }

    pub async fn reader(&self) -> Result<Arc<Session>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut slot = self.readers[turn % READERS].lock().await;
        if let Some(client) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.connect().await?);
        *slot = Some(client.clone());
        Ok(client)
    }
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
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {}", said.severity(), said.message()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
