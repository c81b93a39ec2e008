-- The version is in the table of migrations now, where an older program does not look: it refuses to start.
ALTER TABLE head DROP COLUMN format;

-- History up to here has been removed: the search for what to remove next begins behind it, and not among dead rows.
ALTER TABLE compaction ADD COLUMN pruned bigint NOT NULL DEFAULT 0;

-- Whose commit it was: tells a writer whose connection was lost whether its transaction was committed.
ALTER TABLE history ADD COLUMN token bigint NOT NULL DEFAULT 0;

-- Keys are written again and again: room on their page lets the database keep the versions together and clear them away
-- without the indexes being touched.
ALTER TABLE current SET (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- History is written at one end and removed at the other. Vacuum comes after so many rows, however large the table is.
ALTER TABLE history SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
