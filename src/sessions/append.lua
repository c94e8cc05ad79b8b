-- Appends a revocation to the log, and lets entries go that no access token can be affected by any more.
--
-- KEYS[1] the log. ARGV: until when, by this server's clock, it may be done (Unix ms; empty: for ever), kind, id, at (Unix
-- ms; empty: now by this server), by, the user (empty: not known), how long entries are kept (ms).

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > (tonumber(ARGV[1]) or now) then
    return redis.error_reply('LATE whoever asked was told that it failed')
end
local at = tonumber(ARGV[4]) or now
local fields = { 'kind', ARGV[2], 'id', ARGV[3], 'at', string.format('%.0f', at), 'by', ARGV[5] }
if ARGV[6] ~= '' then
    table.insert(fields, 'user')
    table.insert(fields, ARGV[6])
end
local oldest = string.format('%.0f', math.max(0, now - tonumber(ARGV[7])))
return redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', unpack(fields))
