//! Reading. Each read is one statement, and so of one moment: it learns the store's revision with what it reads.

use super::connection::{Connections, error};
use crate::feed::History;
use crate::{Change, Changes, Entry, Error, ListOptions, Page, Result, Revision};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Changes read from history in one go; a commit is never split.
const CHUNK_CHANGES: i64 = 500;

const MARKS: &str = "SELECT h.revision, c.revision FROM head h CROSS JOIN compaction c";

const GET: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN current e ON e.key = $1";

/// The state at a revision is what the next change found, or the present one if there was no next change.
const GET_AT: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        (SELECT 0 AS place, key, prior_created AS created, prior_modified AS modified, prior_value AS value
            FROM history WHERE key = $1 AND revision > $2 ORDER BY revision LIMIT 1)
        UNION ALL
        (SELECT 1, key, created, modified, value FROM current WHERE key = $1)
        ORDER BY place LIMIT 1) e ON true";

const LIST: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        SELECT key, created, modified, value FROM current
        WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3) e ON true ORDER BY e.key";

const LIST_AT: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        WITH touched AS (
            SELECT DISTINCT ON (key) key, prior_created, prior_modified, prior_value FROM history
            WHERE revision > $4 AND key >= $1 AND key < $2 ORDER BY key, revision)
        SELECT key, prior_created AS created, prior_modified AS modified, prior_value AS value
            FROM touched WHERE prior_value IS NOT NULL
        UNION ALL
        SELECT key, created, modified, value FROM current s WHERE key >= $1 AND key < $2
            AND NOT EXISTS (SELECT FROM touched t WHERE t.key = s.key)
        ORDER BY key LIMIT $3) e ON true ORDER BY e.key";

const CHANGES: &str = "WITH stretch AS (SELECT coalesce(
        (SELECT revision FROM history WHERE revision > $1 ORDER BY revision, index OFFSET $4 LIMIT 1),
        (SELECT revision FROM head)) AS stop)
    SELECT h.revision, c.revision, s.stop, e.revision, e.key, e.prior_created, e.prior_modified, e.prior_value,
        e.created, e.modified, e.value
    FROM stretch s CROSS JOIN head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        SELECT r.revision, r.index, r.key, r.prior_created, r.prior_modified, r.prior_value,
            CASE WHEN n.revision IS NULL THEN k.created ELSE n.prior_created END AS created,
            CASE WHEN n.revision IS NULL THEN k.modified ELSE n.prior_modified END AS modified,
            CASE WHEN n.revision IS NULL THEN k.value ELSE n.prior_value END AS value
        FROM history r
        LEFT JOIN LATERAL (SELECT * FROM history f WHERE f.key = r.key AND f.revision > r.revision
            ORDER BY f.revision LIMIT 1) n ON true
        LEFT JOIN current k ON k.key = r.key AND n.revision IS NULL
        WHERE r.revision > $1 AND r.revision <= s.stop AND r.key >= $2 AND r.key < $3
    ) e ON true ORDER BY e.revision, e.index";

/// The store's revision, and the oldest that can be read.
#[derive(Clone, Copy)]
pub struct Marks {
    pub revision: Revision,
    pub compacted: Revision,
}

impl Marks {
    fn of(row: &Row) -> Marks {
        Marks { revision: revision(row.get(0)), compacted: revision(row.get(1)) }
    }

    pub fn readable(&self, asked: Revision) -> Result<()> {
        if asked > self.revision {
            return Err(Error::Future { asked, current: self.revision });
        }
        if asked < self.compacted {
            return Err(Error::Compacted { asked, oldest: self.compacted });
        }
        Ok(())
    }
}

pub fn revision(value: i64) -> Revision {
    Revision(value as u64)
}

impl Connections {
    async fn rows(
        &self,
        operation: &'static str,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let client = self.reader().await?;
        let statement = client.prepared(sql).await.map_err(|e| error(operation, e))?;
        client.query(&statement, parameters).await.map_err(|e| error(operation, e))
    }

    pub async fn marks(&self) -> Result<Marks> {
        first(&self.rows("read", MARKS, &[]).await?).map(Marks::of)
    }

    pub async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        let rows = match at {
            None => self.rows("get", GET, &[&key]).await?,
            Some(at) => self.rows("get", GET_AT, &[&key, &(at.0 as i64)]).await?,
        };
        let row = first(&rows)?;
        let marks = Marks::of(row);
        marks.readable(at.unwrap_or(marks.revision))?;
        Ok((entry(row, key.into(), 3), marks.revision))
    }

    pub async fn list(&self, prefix: &str, options: &ListOptions) -> Result<Page> {
        let from = options.from.as_deref().filter(|from| *from > prefix).unwrap_or(prefix);
        let limit = options.limit.map(|limit| limit as i64 + 1);
        let end = end_of(prefix);
        let rows = match options.at {
            None => self.rows("list", LIST, &[&from, &end, &limit]).await?,
            Some(at) => self.rows("list", LIST_AT, &[&from, &end, &limit, &(at.0 as i64)]).await?,
        };
        let marks = Marks::of(first(&rows)?);
        let at = options.at.unwrap_or(marks.revision);
        marks.readable(at)?;
        let key = |row: &Row| row.get::<_, Option<&str>>(2).map(Arc::from);
        let mut entries: Vec<Entry> = rows.iter().filter_map(|row| entry(row, key(row)?, 3)).collect();
        let next = options.limit.filter(|limit| entries.len() > *limit).map(|limit| entries.split_off(limit));
        Ok(Page { entries, revision: at, next: next.map(|rest| rest[0].key.clone()) })
    }
}

#[async_trait]
impl History for Connections {
    async fn changes_after(&self, prefix: &str, after: Revision) -> Result<(Vec<Changes>, Revision)> {
        let parameters: [&(dyn ToSql + Sync); 4] = [&(after.0 as i64), &prefix, &end_of(prefix), &CHUNK_CHANGES];
        let rows = self.rows("changes", CHANGES, &parameters).await?;
        let row = first(&rows)?;
        Marks::of(row).readable(after)?;
        let reached = revision(row.get(2));
        let mut commits: Vec<Changes> = Vec::new();
        for row in &rows {
            let Some(at) = row.get::<_, Option<i64>>(3).map(revision) else { continue };
            let key: Arc<str> = row.get::<_, &str>(4).into();
            let (previous, value) = (entry(row, key.clone(), 5), entry(row, key.clone(), 8));
            if value.as_ref().is_some_and(|v| v.modified != at) {
                let what = format!("nothing tells what {key} became at revision {at}");
                return Err(Error::Corrupt { place: "the table history".to_owned(), what });
            }
            let change = Change { revision: at, key, value, previous };
            match commits.last_mut().filter(|c| c.revision == at) {
                Some(commit) => commit.changes.push(change),
                None => commits.push(Changes { revision: at, changes: vec![change] }),
            }
        }
        Ok((commits, reached))
    }
}

/// The entry whose creation, change and value are in three columns from `column`, if there is a value.
fn entry(row: &Row, key: Arc<str>, column: usize) -> Option<Entry> {
    let value = Bytes::copy_from_slice(row.get::<_, Option<&[u8]>>(column + 2)?);
    Some(Entry { key, value, created: revision(row.get(column)), modified: revision(row.get(column + 1)) })
}

/// A string after all that begin with the prefix: no key has this last of all code points.
fn end_of(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

fn first(rows: &[Row]) -> Result<&Row> {
    let what = || Error::Corrupt { place: "the table head".to_owned(), what: "it is empty".to_owned() };
    rows.first().ok_or_else(what)
}
