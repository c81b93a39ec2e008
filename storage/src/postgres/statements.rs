//! Every statement that is run while the store is in use. They are in one place so that a test can look at the plan of each
//! on a large table: none may ever walk through one.

/// Begins a group: whoever holds this row is the one who writes.
pub const LOCK: &str =
    "SELECT revision, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM head FOR NO KEY UPDATE";
pub const LOAD: &str = "SELECT key, created, modified, index, expires, value FROM current WHERE key = ANY($1)";
pub const PUT: &str = "INSERT INTO current (key, created, modified, index, expires, value)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::integer[], $5::bigint[], $6::bytea[])
    ON CONFLICT (key) DO UPDATE SET created = excluded.created, modified = excluded.modified, index = excluded.index,
        expires = excluded.expires, value = excluded.value";
pub const DELETE: &str = "DELETE FROM current WHERE key = ANY($1)";
pub const RECORD: &str = "INSERT INTO history
        (revision, index, time, key, prior_created, prior_modified, prior_value, token)
    SELECT *, $8::bigint FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[],
        $7::bytea[])";
pub const ADVANCE: &str = "UPDATE head SET revision = $1";
pub const NOTIFY: &str = "SELECT pg_notify($1, '')";
/// Whose commit a revision is.
pub const TOKEN: &str = "SELECT token FROM history WHERE revision = $1 AND index = 0";

pub const MARKS: &str = "SELECT h.revision, c.revision FROM head h CROSS JOIN compaction c";

pub const GET: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN current e ON e.key = $1";

/// The state at a revision is what the next change found, or the present one if there was no next change.
pub const GET_AT: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        (SELECT 0 AS place, key, prior_created AS created, prior_modified AS modified, prior_value AS value
            FROM history WHERE key = $1 AND revision > $2 ORDER BY revision LIMIT 1)
        UNION ALL
        (SELECT 1, key, created, modified, value FROM current WHERE key = $1)
        ORDER BY place LIMIT 1) e ON true";

/// The rows come as the inner query found them, in the order of keys: to sort them again the database would write them to disk.
pub const LIST: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        SELECT key, created, modified, value FROM current
        WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3) e ON true";

/// What was changed since is as the first of the changes found it; all else is as it is now.
pub const LIST_AT: &str = "SELECT h.revision, c.revision, e.key, e.created, e.modified, e.value
    FROM head h CROSS JOIN compaction c LEFT JOIN LATERAL (
        WITH touched AS (
            SELECT DISTINCT ON (key) key, prior_created, prior_modified, prior_value FROM history
            WHERE revision > $4 AND key >= $1 AND key < $2 ORDER BY key, revision)
        (SELECT key, prior_created AS created, prior_modified AS modified, prior_value AS value
            FROM touched WHERE prior_value IS NOT NULL ORDER BY key LIMIT $3)
        UNION ALL
        (SELECT key, created, modified, value FROM current
            WHERE key >= $1 AND key < $2 AND modified <= $4 ORDER BY key LIMIT $3)
        ORDER BY key LIMIT $3) e ON true";

pub const CHANGES: &str = "WITH stretch AS (SELECT coalesce(
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

pub const EXPIRED: &str = "SELECT key, modified FROM current
    WHERE expires > 0 AND expires <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint ORDER BY expires LIMIT $1";
pub const EXPIRING: &str = "SELECT key, expires FROM current WHERE expires > 0 AND modified > $1 ORDER BY expires";
/// Marks as forgotten what has been kept long enough, among the oldest so many changes.
pub const FORGET: &str = "UPDATE compaction SET revision = old.revision FROM (
        SELECT max(revision) AS revision FROM (
            SELECT revision, time FROM history WHERE revision > (SELECT pruned FROM compaction)
            ORDER BY revision, index LIMIT $1) h
        WHERE time < (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $2) old
    WHERE compaction.revision < old.revision";
pub const COMPACTED: &str = "UPDATE compaction SET revision = greatest(revision, $1)";
/// Removes so many of the changes that are forgotten. What two servers do at once is done once: the second finds the row
/// changed.
pub const REMOVE: &str = "WITH step AS (SELECT max(revision) AS revision FROM (
            SELECT revision FROM history
            WHERE revision > (SELECT pruned FROM compaction) AND revision <= (SELECT revision FROM compaction)
            ORDER BY revision, index LIMIT $1) h),
        old AS (SELECT pruned FROM compaction),
        removed AS (DELETE FROM history WHERE revision > (SELECT pruned FROM old)
            AND revision <= (SELECT revision FROM step) RETURNING 1),
        mark AS (UPDATE compaction SET pruned = step.revision FROM step WHERE compaction.pruned < step.revision)
    SELECT count(*) FROM removed";
pub const COMPACT: &str = "UPDATE compaction SET revision = $1 WHERE revision < $1";

/// The statements that look for rows in the large tables, each with arguments as the plans' test needs them.
#[cfg(test)]
pub const PLANNED: [(&str, &str); 13] = [
    (LOAD, "ARRAY['/r/a/1', '/r/a/2', '/r/b/3']"),
    (DELETE, "ARRAY['/r/a/1', '/r/a/2', '/r/b/3']"),
    (TOKEN, "70000"),
    (GET, "'/r/a/77'"),
    (GET_AT, "'/r/a/77', 99000"),
    (LIST, "'/r/a/', '/r/a/\u{10ffff}', 500"),
    (LIST_AT, "'/r/a/', '/r/a/\u{10ffff}', 500, 99000"),
    (CHANGES, "99000, '/r/a/', '/r/a/\u{10ffff}', 500"),
    (EXPIRED, "100"),
    (EXPIRING, "90000"),
    (FORGET, "1000, 300000"),
    (REMOVE, "1000"),
    (LIST, "'', '\u{10ffff}', NULL"),
];
