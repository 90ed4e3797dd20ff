-- Work for a real sqlite3: a table, an index, a sort, mapped input.
PRAGMA mmap_size = 67108864;
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT, n INTEGER);
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 50000)
INSERT INTO t (word, n) SELECT printf('word %d', i * 7919 % 50000), i * 104729 % 9973 FROM c;
CREATE INDEX by_word ON t (word, n);
SELECT count(*), sum(n), max(word) FROM t;
SELECT n, count(*) FROM t GROUP BY n ORDER BY 2 DESC, 1 LIMIT 5;
VACUUM;
SELECT count(DISTINCT n) FROM t;
