-- The service has taken these events.
--
-- KEYS[1] hash: epoch, waiting (how many events wait); KEYS[2] the stream of events. ARGV: the epoch of the events, then their ids.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
    return 0
end
local count = redis.call('XDEL', KEYS[2], unpack(ARGV, 2))
-- Another instance may have told of all of them before; and Redis takes no negative zero.
if count > 0 then
    redis.call('HINCRBY', KEYS[1], 'waiting', -count)
end
return count
