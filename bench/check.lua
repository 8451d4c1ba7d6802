-- wrk script: asks for the keys of a file one after the other, round and round.
--
--   wrk ... -s bench/check.lua URL -- MODE KEYFILE RULE PER_BATCH
--
-- MODE is get, post or batch. Every request is written out before the run starts, so that the load
-- generator's share of the work is the same small one for every server and mode.

local requests, at = {}, 0

local function read_keys(path)
   local keys = {}
   for key in io.lines(path) do keys[#keys + 1] = key end
   return keys
end

local function check(rule, key)
   return string.format('{"rule":"%s","key":"%s"}', rule, key)
end

function init(args)
   local mode, keys, rule, per_batch = args[1], read_keys(args[2]), args[3], tonumber(args[4])
   local json = { ["Content-Type"] = "application/json", ["Host"] = wrk.headers["Host"] }
   if mode == "batch" then
      for first = 1, #keys - per_batch + 1, per_batch do
         local checks = {}
         for i = first, first + per_batch - 1 do checks[#checks + 1] = check(rule, keys[i]) end
         local body = '{"checks":[' .. table.concat(checks, ",") .. "]}"
         requests[#requests + 1] = wrk.format("POST", "/v1/check/batch", json, body)
      end
      return
   end
   for i, key in ipairs(keys) do
      if mode == "get" then
         requests[i] = wrk.format("GET", "/v1/check?rule=" .. rule .. "&key=" .. key)
      else
         requests[i] = wrk.format("POST", "/v1/check", json, check(rule, key))
      end
   end
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "duration_us": %d, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
      summary.requests, summary.duration, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
