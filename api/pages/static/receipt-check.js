// Checks a receipt of the log (C2SP tlog-proof) in this browser, so that its page need not be believed.
//
// Nothing is sent. The steps are those of merkle/receipts.py and standalone_verifier.py:
//   1. the checkpoint inside is of the log whose key was given, and that key signed it (Ed25519);
//   2. witnesses: a lone key asks for none, and the result says so;
//   3. the leaf hash of the entry, with the path, leads to the checkpoint's root (RFC 9162, section 2.1.3.2);
//   4. on an audit's page: the entry names the SHA-256 of the verdict's bytes, and they say what the page says.
"use strict";

const encode = (text) => new TextEncoder().encode(text);
const hex = (data) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
const same = (a, b) => hex(a) === hex(b);

function joined(...parts) {
  return Uint8Array.from(parts.flatMap((part) => Array.from(part)));
}

async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", joined(...parts)));
}

function unbase64(text) {
  let raw = "";
  try { raw = atob(text); } catch { throw new Error(`${text.slice(0, 40)} is no base64`); }
  if (btoa(raw) !== text) throw new Error(`${text.slice(0, 40)} is no canonical base64`);
  return Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
}

function number(text) {
  if (!/^(0|[1-9][0-9]{0,14})$/.test(text)) throw new Error(`${text.slice(0, 30)} is no number`);
  return Number(text);
}

function readReceipt(raw) {
  const blank = raw.indexOf("\n\n");
  const [header, ...rows] = raw.slice(0, blank).split("\n");
  if (blank < 0 || header !== "c2sp.org/tlog-proof@v1") throw new Error("this is no receipt");
  if (rows[0]?.startsWith("extra ")) rows.shift();
  if (!rows[0]?.startsWith("index ") || rows.length > 64) throw new Error("the receipt names no index");
  const path = rows.slice(1).map(unbase64);
  if (path.some((hash) => hash.length !== 32)) throw new Error("a hash of the path is not 32 bytes long");
  const note = raw.slice(blank + 2);
  const end = note.lastIndexOf("\n\n");
  const text = note.slice(0, end + 1);
  const [origin, size, root] = text.split("\n");
  if (end < 0 || !root || !note.endsWith("\n")) throw new Error("the checkpoint in the receipt is cut off");
  const lines = note.slice(end + 2, -1).split("\n");
  return { index: number(rows[0].slice(6)), path, text, origin, size: number(size), root: unbase64(root), lines };
}

async function readKey(vkey) {
  const [name, id, body] = [...vkey.trim().split("+").slice(0, 2), vkey.trim().split("+").slice(2).join("+")];
  const material = unbase64(body);
  const digest = await sha256(encode(`${name}\n`), material);
  if (hex(digest.slice(0, 4)) !== id) throw new Error("the key does not fit its own id");
  if (material[0] !== 1 || material.length !== 33) throw new Error("only Ed25519 keys are checked here");
  return { name, id: digest.slice(0, 4), material: material.slice(1) };
}

async function checkSignature(receipt, vkey) {
  const key = await readKey(vkey);
  if (receipt.origin !== key.name) throw new Error(`the checkpoint is of ${receipt.origin}, the key of ${key.name}`);
  const verifier = await crypto.subtle.importKey("raw", key.material, "Ed25519", false, ["verify"]);
  let signed = 0;
  for (const line of receipt.lines) {
    const [dash, name, body] = line.split(" ");
    if (dash !== "\u2014" || body === undefined) throw new Error("a signature line cannot be read");
    const data = unbase64(body);
    if (name !== key.name || !same(data.slice(0, 4), key.id)) continue;
    if (!await crypto.subtle.verify("Ed25519", verifier, data.slice(4), encode(receipt.text))) {
      throw new Error(`the signature of ${name} is invalid`);
    }
    signed += 1;
  }
  if (!signed) throw new Error("this key did not sign the checkpoint");
  return `${key.name} signed a tree of ${receipt.size} entries`;
}

async function checkPath(receipt, entry) {
  if (receipt.index >= receipt.size) throw new Error(`index ${receipt.index} in a tree of ${receipt.size}`);
  let node = await sha256([0], encode(entry));
  let [index, last] = [receipt.index, receipt.size - 1];
  for (const sibling of receipt.path) {
    if (last === 0) throw new Error("the path is too long");
    while (index % 2 === 0 && index === last) [index, last] = [index / 2, Math.floor(last / 2)];
    node = index % 2 ? await sha256([1], sibling, node) : await sha256([1], node, sibling);
    [index, last] = [Math.floor(index / 2), Math.floor(last / 2)];
  }
  if (last !== 0) throw new Error("the path is too short");
  if (!same(node, receipt.root)) throw new Error("the path leads to another root");
  return `Entry ${receipt.index} is in that tree`;
}

async function checkVerdict(entry, address, outcome) {
  const answer = await fetch(address, { credentials: "same-origin" });
  if (!answer.ok) throw new Error("the verdict could not be fetched");
  const raw = new Uint8Array(await answer.arrayBuffer());
  const digest = `sha256:${hex(await sha256(raw))}`;
  if (JSON.parse(entry).verdict !== digest) throw new Error("the entry is of another verdict");
  if (JSON.parse(new TextDecoder().decode(raw)).verdict !== outcome) throw new Error("this page shows another verdict");
  return `The entry is of this verdict, ${outcome}`;
}

async function check(form) {
  const value = (part) => form.querySelector(`[data-part=${part}]`).value;
  const list = form.querySelector("[data-part=steps]");
  const { verdict, outcome } = form.dataset;
  let receipt;
  const steps = [
    async () => { receipt = readReceipt(value("receipt")); return checkSignature(receipt, value("key")); },
    async () => ({ left: `Witnesses are not asked for by a lone key; ${receipt.lines.length - 1} other signatures` }),
    async () => checkPath(receipt, value("entry")),
    ...(verdict ? [async () => checkVerdict(value("entry"), verdict, outcome)] : []),
  ];
  const found = [];
  let held = true;
  for (const step of steps) {
    const item = document.createElement("li");
    try {
      if (!held) throw new Error("not looked at");
      if (!globalThis.crypto?.subtle) throw new Error("this browser checks over HTTPS and on localhost only");
      const told = await step();
      item.textContent = told.left ?? told;
      item.className = told.left ? "skipped" : "holds";
    } catch (problem) {
      item.textContent = held ? `Refused: ${problem.message || "this browser cannot check Ed25519"}` : "Not looked at";
      item.className = held ? "fails" : "skipped";
      held = false;
    }
    found.push(item);
  }
  list.replaceChildren(...found);
  list.dataset.held = String(held);
}

for (const form of document.querySelectorAll(".receipt-check")) {
  form.querySelector("[data-part=check]").hidden = false;
  form.querySelector(".needs-script").hidden = true;
  form.addEventListener("submit", (event) => { event.preventDefault(); check(form); });
}
