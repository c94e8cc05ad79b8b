-- An instance lives on, or goes.
--
-- KEYS[1] the instances, by when their leases end (Unix ms); KEYS[2], where it goes and has sent lifecycle events, which of them
-- sends them. ARGV: the node, how long its lease is (ms), 1 if it goes.
local node, lease = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[3] ~= '1' then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), node)
    return 1
end
redis.call('ZREM', KEYS[1], node)
if KEYS[2] and redis.call('GET', KEYS[2]) == node then
    redis.call('DEL', KEYS[2])
end
return 0
