// A real node as an HTTP server: every POST is answered with its own body. Says its port on stdout,
// serves until SIGTERM, and is quiet otherwise.
//
// Each request makes and drops buffers that the C library maps one by one (with MALLOC_MMAP_THRESHOLD_
// set), so that memory calls come and go with the load; now and then one runs through a worker thread.
'use strict';
const http = require('node:http');
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

if (!isMainThread) {
  parentPort.on('message', (body) => parentPort.postMessage(Buffer.from(body)));
} else {
  const worker = new Worker(__filename);
  const waiting = [];
  worker.on('message', (body) => waiting.shift()(Buffer.from(body)));
  const server = http.createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    let body = Buffer.concat(parts);
    if (body.length % 16 === 0) {
      body = await new Promise((done) => {
        waiting.push(done);
        worker.postMessage(body);
      });
    }
    const churned = Buffer.alloc((body.length % 8) * 65536 + 65536, body[0]);
    if (churned[churned.length - 1] !== body[0]) throw new Error('memory is not what was written');
    response.end(body);
  });
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));
  process.on('SIGTERM', () => process.exit(0));
}
