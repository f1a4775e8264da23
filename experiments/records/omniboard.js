// Loaded into Omniboard by node's --require: for this machine's user alone, on the port that was asked for.
// Omniboard would listen on every interface, try the next port, and let pages of any site read and delete runs.
const http = require("http");
const net = require("net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (String(port) !== process.env.PORT) {
    console.error(`Port ${process.env.PORT} is taken.`);
    process.exit(1);
  }
  return listen.call(this, Number(port), "127.0.0.1", ...rest);
};

const ours = ({ host = "", origin = `http://${host}` }) =>
  /^(127\.0\.0\.1|localhost)(:\d+)?$/.test(host) && origin === `http://${host}`;

// a browser that has not been here gets the columns of experiments/omniboard.py, later its own choice stays
const visit = JSON.stringify(JSON.parse(process.env.FIRST_VISIT || "{}")).replace(/</g, "\\u003c");
const welcome = `<!doctype html><title>Omniboard</title><script>
for (const [key, value] of Object.entries(${visit})) localStorage[key] ??= JSON.stringify(value);
location.replace("/sacred");
</script>`;

const emit = http.Server.prototype.emit;
http.Server.prototype.emit = function (event, request, response) {
  if (event !== "request") return emit.apply(this, arguments);
  if (!ours(request.headers)) return response.writeHead(403).end();
  if (request.url === "/") return response.writeHead(200, { "Content-Type": "text/html" }).end(welcome);
  return emit.apply(this, arguments);
};
