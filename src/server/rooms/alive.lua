-- An instance lives on, or goes.
--
-- KEYS[1] the instances, by when their leases end (Unix ms), KEYS[2] what lifecycle events know of instances, KEYS[3] which of
-- them sends the events. ARGV: the node, how long its lease is (ms), 1 if it goes: then those whom it leaves behind have so long
-- to come to another one.
local node, lease = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = string.format('%.0f', now + lease)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[3] ~= '1' then
    redis.call('ZADD', KEYS[1], ends, node)
    return 1
end
redis.call('ZREM', KEYS[1], node)
local connection = string.match(redis.call('HGET', KEYS[2], node) or '', '^(%d+) here$')
if connection then
    redis.call('HSET', KEYS[2], node, connection .. ' ' .. ends)
end
if redis.call('GET', KEYS[3]) == node then
    redis.call('DEL', KEYS[3])
end
return 0
