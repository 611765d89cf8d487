-- What wrk sends, by the first argument after `--`, and what it says at the end: one line of JSON behind "BENCH ".
-- fixed: one GET head, from the command line.  headers: eleven fields as a browser and its proxies send them, with
-- an id, a path and a query that never come twice.  post: 1 KiB of JSON.  paced MS: the fixed head, each connection
-- at rest before each request for a random time of MS milliseconds on average.

local count = 0

local function headers()
  count = count + 1
  local id = string.format("%08x-%04x", count * 2654435761 % 4294967296, count % 65536)
  return "GET /shop/items/" .. count .. "?session=" .. id .. "&page=" .. count % 97 .. " HTTP/1.1\r\n"
    .. "Host: shop.example.com\r\n"
    .. "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    .. "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    .. "Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n"
    .. "Accept-Encoding: gzip, deflate, br\r\n"
    .. "Referer: https://shop.example.com/shop/items\r\n"
    .. "Cookie: session=9f8e7d6c5b4a39281706f5e4d3c2b1a0; theme=dark; consent=1\r\n"
    .. "Cache-Control: no-cache\r\n"
    .. "X-Request-Id: " .. id .. "\r\n"
    .. "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-" .. string.format("%016x", count) .. "-01\r\n"
    .. "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P\r\n\r\n"
end

function init(args)
  if args[1] == "headers" then
    request = headers
  elseif args[1] == "post" then
    local start, stop = '{"order": 4711, "note": "', '"}'
    local body = start .. string.rep("x", 1024 - #start - #stop) .. stop
    wrk.method, wrk.body = "POST", body
    wrk.headers["Content-Type"] = "application/json"
  elseif args[1] == "paced" then
    local longest = 2 * tonumber(args[2])
    delay = function()
      return math.floor(math.random() * longest + 0.5)
    end
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'BENCH {"requests": %d, "us": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, "status": %d, '
      .. '"timeout": %d, "p50_us": %d, "p99_us": %d, "p999_us": %d, "max_us": %d}\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max))
end
