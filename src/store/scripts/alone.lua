-- Notes which line of a shard its holder is about to have in hand alone, so that whoever takes the shard after the
-- holder's death knows of it.
-- KEYS[1] job
-- ARGV    shard · the holder's token · index of the line within the shard
-- Returns 1, or 0 when another token holds the shard
-- Repeat  the same: the note is written anew as it is
local shard = KEYS[1] .. SHARD .. ARGV[1]
local found = redis.call('HMGET', shard, 'token', 'alone')
if found[1] ~= ARGV[2] then return 0 end
local line, deaths, at = string.match(found[2] or '', '^(%d+) (%d+) (%d+)')
if line ~= ARGV[3] then deaths, at = 0, 0 end
redis.call('HSET', shard, 'alone', ARGV[3] .. ' ' .. deaths .. ' ' .. at .. ' ' .. ARGV[2])
return 1
