//! Static tokens of a CSV file: `token,user,uid,"group1,group2"` (upstream: `authentication/token/tokenfile`).

use super::{ConfigError, Refused, TokenAuthenticator, TokenUser, read};
use crate::request::User;
use async_trait::async_trait;
use std::collections::HashMap;
use std::path::Path;

/// Read once at start: a change of the file needs a restart, as upstream's does.
#[derive(Debug)]
pub struct TokenFile(HashMap<String, User>);

impl TokenFile {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = String::from_utf8(read(path)?)
            .map_err(|_| ConfigError::Content { path: path.to_owned(), what: "not UTF-8".into() })?;
        Self::parse(&text).map_err(|what| ConfigError::Content { path: path.to_owned(), what })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut users = HashMap::new();
        for record in records(text)? {
            if record.len() < 3 {
                return Err(format!(
                    "must have at least 3 columns (token, user name, user uid), found {}",
                    record.len()
                ));
            }
            if record[0].is_empty() {
                tracing::warn!("a line of the token file has an empty token and is ignored");
                continue;
            }
            let groups = match record.get(3) {
                Some(list) if !list.is_empty() => list.split(',').map(|g| g.trim().to_owned()).collect(),
                _ => Vec::new(),
            };
            let user = User { name: record[1].clone(), uid: record[2].clone(), groups, ..User::default() };
            if users.insert(record[0].clone(), user).is_some() {
                tracing::warn!("the token file has a token twice; the later line counts");
            }
        }
        Ok(Self(users))
    }
}

#[async_trait]
impl TokenAuthenticator for TokenFile {
    async fn authenticate_token(&self, token: &str, _audiences: &[String]) -> Result<Option<TokenUser>, Refused> {
        Ok(self.0.get(token).map(|user| TokenUser { user: user.clone(), audiences: Vec::new() }))
    }
}

/// The records of a CSV text as Go's `encoding/csv` reads it with any number of fields a record: fields in double quotes
/// may hold commas, newlines and doubled quotes; empty lines are skipped.
fn records(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut all = Vec::new();
    let mut chars = text.chars().peekable();
    let mut record: Vec<String> = Vec::new();
    let mut field = String::new();
    let mut line = 1;
    while chars.peek().is_some() {
        if chars.peek() == Some(&'"') {
            chars.next();
            loop {
                match chars.next() {
                    Some('"') if chars.peek() == Some(&'"') => {
                        chars.next();
                        field.push('"');
                    }
                    Some('"') => break,
                    Some(c) => field.push(c),
                    None => return Err(format!("line {line}: a quote is not closed")),
                }
            }
            if !matches!(chars.peek(), None | Some(',' | '\n' | '\r')) {
                return Err(format!("line {line}: text after a closing quote"));
            }
        }
        match chars.next() {
            Some(',') => {
                record.push(std::mem::take(&mut field));
                // A line that ends in a comma has one more, empty, field.
                if matches!(chars.peek(), None | Some('\n' | '\r')) {
                    continue;
                }
            }
            Some('\r') if chars.peek() == Some(&'\n') => {}
            end @ (Some('\n') | None) => {
                if !(record.is_empty() && field.is_empty()) {
                    record.push(std::mem::take(&mut field));
                    all.push(std::mem::take(&mut record));
                }
                if end.is_some() {
                    line += 1;
                }
            }
            Some('"') => return Err(format!("line {line}: a bare quote in a field")),
            Some(c) => field.push(c),
        }
    }
    if !(record.is_empty() && field.is_empty()) {
        record.push(field);
        all.push(record);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_one_quoted_column() {
        let file = TokenFile::parse("t1,alice,1,\"a,b\"\n\nt2,bob,2\r\n,nobody,3\n").unwrap();
        assert_eq!(file.0.len(), 2);
        assert_eq!(file.0["t1"].groups, ["a", "b"]);
        assert_eq!(file.0["t2"].name, "bob");
        assert!(TokenFile::parse("t1,alice").is_err());
        assert_eq!(records("a,\n\"x\"\"y\",z").unwrap(), [vec!["a", ""], vec!["x\"y", "z"]]);
    }
}
