-- Marks a job as one whose end is recorded for every webhook that wants it.
-- KEYS[1] record
-- Returns 1, or 0 when the record is gone, or not final: a Redis that lost its tail may know of no end yet
-- Repeat  the same
if not FINAL[redis.call('HGET', KEYS[1], 'state') or ''] then return 0 end
redis.call('HSETNX', KEYS[1], 'told_at', now())
return 1
