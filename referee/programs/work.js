// Buffers, sorting with callbacks, regular expressions, compression and a worker thread, for ever.
'use strict';
const { Worker, isMainThread } = require('node:worker_threads');
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
function work() {
  const list = Array.from({ length: 2000 }, (_, i) => ({ key: (i * 7919) % 2003, text: `n${i}` }));
  list.sort((a, b) => a.key - b.key || a.text.localeCompare(b.text));
  JSON.parse(JSON.stringify(list)).map((x) => x.text.replace(/\d/g, (d) => d + 1));
  const packed = zlib.gunzipSync(zlib.gzipSync(Buffer.from('maptrail '.repeat(5000))));
  crypto.createHash('sha256').update(packed).digest('hex');
  churn(20);
  setImmediate(work);
}
if (isMainThread) new Worker(__filename);
work();
