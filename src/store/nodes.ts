import * as v from 'valibot';
import { integer, jsonText, parseRecord } from './parse.ts';
import { orReport } from './records.ts';
import type { Context } from './records.ts';

/** A process that has not beaten for this long counts as dead. */
const BEAT_MAX_AGE_MS = 6_000;

/** A process as it describes itself. `queues` are those that its worker serves. */
export interface NewBeat {
  id: string;
  roles: string[];
  queues: string[];
  pid: number;
  host: string;
}

export interface NodeInfo extends NewBeat {
  /** Its last beat, Redis time in ms. */
  beatAt: number;
}

/** Heartbeats of processes. */
export interface Nodes {
  /** To be called every 2 s; resolves to Redis' time, ms. */
  beat(node: NewBeat): Promise<number>;
  leave(id: string): Promise<void>;
  /** Processes that have beaten within 6 s, by id; older ones are forgotten. Damaged entries are left out and reported. */
  live(): Promise<NodeInfo[]>;
  /** How many live processes take shards. */
  dispatchers(): Promise<number>;
}

export function createNodes(context: Context): Nodes {
  const { redis, scripts, keys } = context;
  async function live(): Promise<NodeInfo[]> {
    const reply = v.parse(
      v.array(v.string()),
      await scripts.run('nodes', keys.nodes, BEAT_MAX_AGE_MS),
    );
    const nodes: NodeInfo[] = [];
    for (let i = 0; i < reply.length; i += 2) {
      const node = parseNode(context, reply[i] ?? '', reply[i + 1] ?? '');
      if (node !== null) nodes.push(node);
    }
    return nodes.toSorted((a, b) => (a.id < b.id ? -1 : 1));
  }
  return {
    async beat({ id, ...node }) {
      return v.parse(v.number(), await scripts.run('beat', keys.nodes, id, JSON.stringify(node)));
    },
    async leave(id) {
      await redis.hdel(keys.nodes, id);
    },
    live,
    async dispatchers() {
      return (await live()).filter(
        ({ roles, queues }) => roles.includes('worker') && queues.includes('dispatch'),
      ).length;
    },
  };
}

const nodeFields = v.object({
  beatAt: integer,
  node: v.pipe(
    jsonText,
    v.object({
      roles: v.array(v.string()),
      queues: v.array(v.string()),
      pid: v.number(),
      host: v.string(),
    }),
  ),
});

function parseNode(context: Context, id: string, text: string): NodeInfo | null {
  const space = text.indexOf(' ');
  const fields = { beatAt: text.slice(0, space), node: text.slice(space + 1) };
  return orReport(context, () => {
    const { beatAt, node } = parseRecord(`node ${id}`, nodeFields, fields);
    return { id, ...node, beatAt };
  });
}
