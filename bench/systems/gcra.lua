-- GCRA, one string a key: the time (us) at which its bucket is full again. Redis' own clock, so that all of its
-- clients agree on the time.
--
--   EVALSHA ... 1 KEY  US_PER_TOKEN  BURST  COST  ->  {allowed, remaining, reset_us, retry_us}

local us_per_token, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local full_then = full_at + cost * us_per_token
local early_us = full_then - now - burst * us_per_token
if early_us > 0 then
   return { 0, math.floor(burst - (full_at - now) / us_per_token), full_at - now, early_us }
end
redis.call('SET', KEYS[1], string.format('%.0f', full_then), 'PX', math.ceil((full_then - now) / 1000))
return { 1, math.floor(burst - (full_then - now) / us_per_token), full_then - now, 0 }
