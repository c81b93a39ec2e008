//! Reading. Each read is one statement, and so of one moment: it learns the store's revision with what it reads.

use super::connection::Connections;
use super::statements::{CHANGES, GET, GET_AT, LIST, LIST_AT, MARKS};
use crate::feed::History;
use crate::{Change, Changes, Entry, Error, ListOptions, Page, Result, Revision};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Changes read from history in one go; a commit is never split.
const CHUNK_CHANGES: i64 = 500;

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
        // As they are already, unless the database did something unusual.
        entries.sort_by(|a, b| a.key.cmp(&b.key));
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
