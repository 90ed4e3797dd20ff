// Work for a real node: buffers, a worker thread, a compressed round trip. The same output each run.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');
const zlib = require('node:zlib');
const crypto = require('node:crypto');

function churn(rounds) {
  let sum = 0;
  for (let i = 0; i < rounds; i++) {
    const b = Buffer.alloc(1 << (16 + (i % 6)), i & 255);
    sum += b[b.length - 1];
  }
  return sum;
}

if (isMainThread) {
  const worker = new Worker(__filename);
  worker.on('message', (sum) => {
    const text = Buffer.from('maptrail '.repeat(100000));
    const packed = zlib.gunzipSync(zlib.gzipSync(text));
    const digest = crypto.createHash('sha256').update(packed).digest('hex');
    console.log(`worker ${sum}, main ${churn(400)}, digest ${digest}`);
  });
} else {
  parentPort.postMessage(churn(400));
}
