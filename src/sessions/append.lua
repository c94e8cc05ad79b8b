-- Appends a revocation to the log, and lets entries go that no access token can be affected by any more.
--
-- KEYS[1] the log. ARGV: kind, id, at (Unix ms; empty: now by this server), by, the user (empty: not known), how long
-- entries are kept (ms).

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = tonumber(ARGV[3]) or now
local fields = { 'kind', ARGV[1], 'id', ARGV[2], 'at', string.format('%.0f', at), 'by', ARGV[4] }
if ARGV[5] ~= '' then
    table.insert(fields, 'user')
    table.insert(fields, ARGV[5])
end
local oldest = string.format('%.0f', math.max(0, now - tonumber(ARGV[6])))
return redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', unpack(fields))
