/*
 * User data of cloud-init as far as a launch uses it: `#cloud-config` (YAML or JSON) with `ssh_keys`,
 * `ssh_deletekeys`, `ssh_authorized_keys`, `write_files`, `runcmd`, `bootcmd`, or a `#!` script.
 * cloudinit.readthedocs.io/en/latest/explanation/format.html, and cc_ssh for host keys.
 */

export interface CloudInit {
  /** By file name of /etc/ssh: `ssh_host_ed25519_key` and `.pub`. */
  hostKeys: Record<string, string>;
  authorizedKeys: string[];
  files: { path: string; content: string; mode: string; owner: string }[];
  /** Shell lines in order. */
  commands: string[];
  /** A whole script, run last. */
  script: string | undefined;
  /** Why it was not understood; cloud-init then goes on without it and its status is `error`. */
  error: string | undefined;
}

interface Line {
  indent: number;
  text: string;
}

/** `[mkdir, -p, "/opt/x"]`: a list in one line, whose words need no quotes. */
function flowList(text: string): unknown[] {
  const words = text.slice(1, -1).match(/"(?:[^"\\]|\\.)*"|'[^']*'|[^,]+/g) ?? [];
  return words.filter((word) => word.trim() !== '').map(scalar);
}

function scalar(text: string): unknown {
  const trimmed = text.trim();
  if (trimmed.startsWith('[') && trimmed.endsWith(']')) return flowList(trimmed);
  if (trimmed.startsWith('"') || trimmed.startsWith('{')) return JSON.parse(trimmed);
  if (trimmed.startsWith("'") && trimmed.endsWith("'"))
    return trimmed.slice(1, -1).replaceAll("''", "'");
  const plain = trimmed.replace(/\s+#.*$/, '');
  if (plain === 'true' || plain === 'false') return plain === 'true';
  if (plain === '' || plain === '~' || plain === 'null') return null;
  return /^-?\d+$/.test(plain) && !/^0\d/.test(plain) ? Number(plain) : plain;
}

/** The block style of YAML: maps, lists, `|` and `>` texts and plain, quoted or JSON scalars. */
class BlockParser {
  private readonly lines: Line[];
  private at = 0;

  constructor(text: string) {
    this.lines = text
      .split('\n')
      .map((line) => ({ indent: line.length - line.trimStart().length, text: line }));
  }

  private skip(): void {
    for (let line = this.lines[this.at]; line !== undefined; line = this.lines[this.at]) {
      const text = line.text.trim();
      if (text !== '' && !text.startsWith('#') && text !== '---') return;
      this.at += 1;
    }
  }

  private peek(): Line | undefined {
    this.skip();
    return this.lines[this.at];
  }

  /** `|`, `|-` and `>`: every further line that is indented deeper than its key. */
  private blockText(style: string, parent: number): string {
    const taken: Line[] = [];
    for (let line = this.lines[this.at]; line !== undefined; line = this.lines[this.at]) {
      if (line.text.trim() !== '' && line.indent <= parent) break;
      taken.push(line);
      this.at += 1;
    }
    const indent = taken.find((line) => line.text.trim() !== '')?.indent ?? 0;
    const texts = taken.map((line) => line.text.slice(indent));
    while (texts.at(-1)?.trim() === '') texts.pop();
    const joined = texts.join(style.startsWith('>') ? ' ' : '\n');
    return style.endsWith('-') ? joined : `${joined}\n`;
  }

  private valueAfter(text: string, indent: number): unknown {
    const rest = text.trim();
    if (/^[|>][-+]?$/.test(rest)) return this.blockText(rest, indent);
    if (rest !== '' && !rest.startsWith('#')) return scalar(rest);
    const next = this.peek();
    const isList = next?.text.trim().startsWith('- ') === true;
    if (next === undefined || next.indent < indent || (next.indent === indent && !isList))
      return null;
    return this.block(next.indent);
  }

  private list(indent: number): unknown[] {
    const found: unknown[] = [];
    for (let line = this.peek(); line !== undefined; line = this.peek()) {
      const text = line.text.trim();
      if (line.indent !== indent || (!text.startsWith('- ') && text !== '-')) break;
      const rest = text.slice(1).trimStart();
      if (/^[\w.-]+:(\s|$)/.test(rest)) {
        // The first key of a map stands behind the dash: read it as if it stood alone.
        line.indent += line.text.trimStart().length - rest.length;
        line.text = `${' '.repeat(line.indent)}${rest}`;
        found.push(this.map(line.indent));
      } else {
        this.at += 1;
        found.push(this.valueAfter(rest, indent));
      }
    }
    return found;
  }

  private map(indent: number): Record<string, unknown> {
    const found: Record<string, unknown> = {};
    for (let line = this.peek(); line !== undefined; line = this.peek()) {
      if (line.indent !== indent) break;
      const match = /^\s*["']?([^"':]+)["']?:(\s.*|)$/.exec(line.text);
      if (match === null) throw new Error(`line ${this.at + 1} is no "key: value"`);
      this.at += 1;
      found[match[1] ?? ''] = this.valueAfter(match[2] ?? '', indent);
    }
    return found;
  }

  block(indent: number): unknown {
    const line = this.peek();
    if (line === undefined) return null;
    return line.text.trim().startsWith('-') ? this.list(indent) : this.map(indent);
  }

  document(): unknown {
    const value = this.block(this.peek()?.indent ?? 0);
    if (this.peek() !== undefined) throw new Error(`line ${this.at + 1} is indented wrongly`);
    return value;
  }
}

function asRecord(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Error('not a map');
  return value as Record<string, unknown>; // an object that is no list has string keys
}

function asText(value: unknown): string | undefined {
  return typeof value === 'string' || typeof value === 'number' ? String(value) : undefined;
}

function asList(value: unknown): unknown[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw new Error('not a list');
  return value;
}

/** Wraps a word so that a shell reads it as it is. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

function toCommand(entry: unknown): string {
  return Array.isArray(entry) ? entry.map((word) => quote(String(word))).join(' ') : String(entry);
}

function withNewline(text: string): string {
  return text.endsWith('\n') ? text : `${text}\n`;
}

function hostKeysOf(value: unknown): Record<string, string> {
  const keys: Record<string, string> = {};
  for (const [name, text] of Object.entries(asRecord(value ?? {}))) {
    const match = /^(rsa|ecdsa|ed25519)_(private|public|certificate)$/.exec(name);
    if (match === null) throw new Error(`ssh_keys: ${name} is no key`);
    const suffix = { private: '', public: '.pub', certificate: '-cert.pub' }[match[2] ?? ''] ?? '';
    keys[`ssh_host_${match[1] ?? ''}_key${suffix}`] = withNewline(String(text));
  }
  return keys;
}

function fromConfig(config: Record<string, unknown>): CloudInit {
  const files = asList(config['write_files']).map((entry) => {
    const { path, content, permissions, owner, encoding } = asRecord(entry);
    const text = asText(content) ?? '';
    const encoded = encoding === 'b64' || encoding === 'base64';
    return {
      path: asText(path) ?? '',
      content: encoded ? Buffer.from(text, 'base64').toString() : text,
      mode: asText(permissions) ?? '0644',
      owner: asText(owner) ?? 'root:root',
    };
  });
  return {
    hostKeys: hostKeysOf(config['ssh_keys']),
    authorizedKeys: asList(config['ssh_authorized_keys']).map(String),
    files,
    commands: [...asList(config['bootcmd']), ...asList(config['runcmd'])].map(toCommand),
    script: undefined,
    error: undefined,
  };
}

/** Reads user data; what cannot be understood is an `error` and nothing else, as cloud-init goes on. */
export function parseUserData(text: string): CloudInit {
  const empty = fromConfig({});
  if (text.trim() === '') return empty;
  if (text.startsWith('#!')) return { ...empty, script: text };
  if (!/^#cloud-config\s/.test(text))
    return { ...empty, error: 'Unhandled non-multipart user data' };
  try {
    const body = text.slice(text.indexOf('\n') + 1);
    const value = body.trimStart().startsWith('{')
      ? JSON.parse(body)
      : new BlockParser(body).document();
    return fromConfig(asRecord(value));
  } catch (error) {
    return { ...empty, error: error instanceof Error ? error.message : String(error) };
  }
}
