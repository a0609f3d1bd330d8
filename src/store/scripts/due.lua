-- Ids of an index of times that are over.
-- KEYS[1] index
-- ARGV    how many at most
-- Returns ids, longest over first
-- Repeat  writes nothing
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now(), 'LIMIT', 0, ARGV[1])
