-- Lets shards wait for a worker.
-- KEYS[1] job
-- ARGV    how many shards shall wait
-- Returns shard, wake, shard, wake … of all that wait
-- Repeat  the same: enough wait already
return open(KEYS[1], tonumber(ARGV[1]))
