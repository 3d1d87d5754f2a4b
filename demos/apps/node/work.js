// SPDX-License-Identifier: Apache-2.0
// A web server and its clients in one process, files, a worker thread, a child process, zlib.
'use strict';
const assert = require('assert');
const { execFileSync } = require('child_process');
const { createHash } = require('crypto');
const fs = require('fs');
const http = require('http');
const { Worker } = require('worker_threads');
const zlib = require('zlib');

async function main() {
  const server = http.createServer((request, response) => response.end(request.url));
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address();
  const get = (path) => new Promise((resolve, reject) => {
    http.get({ host: '127.0.0.1', port, path }, (response) => {
      let body = '';
      response.on('data', (part) => { body += part; }).on('end', () => resolve(body));
    }).on('error', reject);
  });
  const bodies = await Promise.all(Array.from({ length: 100 }, (_, n) => get(`/${n}`)));
  assert.strictEqual(bodies[42], '/42');
  server.close();

  fs.rmSync('/root/work', { recursive: true, force: true });
  fs.mkdirSync('/root/work');
  const data = Buffer.alloc(2_000_000, 'serdab');
  await Promise.all(bodies.map((name) => fs.promises.writeFile(`/root/work${name}`, data.subarray(0, 20_000))));
  assert.strictEqual(fs.readdirSync('/root/work').length, 100);
  fs.writeFileSync('/root/work/z', zlib.gzipSync(data));
  assert(zlib.gunzipSync(fs.readFileSync('/root/work/z')).equals(data));

  const sum = await new Promise((resolve, reject) => {
    const text = 'let s = 0; for (let i = 0; i < 1e6; i++) s += i; require("worker_threads").parentPort.postMessage(s)';
    new Worker(text, { eval: true }).on('message', resolve).on('error', reject);
  });
  assert.strictEqual(sum, 499999500000);
  fs.writeFileSync('/root/work/data', data);
  const told = execFileSync('/bin/sha256sum', ['/root/work/data'], { encoding: 'utf8' }).split(' ')[0];
  assert.strictEqual(told, createHash('sha256').update(data).digest('hex'));
  console.log(`node: ${process.version}, 100 requests, files, a thread, a process`);
}

main().catch((error) => { console.error(error); process.exit(1); });
