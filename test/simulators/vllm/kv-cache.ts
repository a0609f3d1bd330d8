/** Tokens in one KV block: vLLM's default `--block-size`. */
export const BLOCK_TOKENS = 16;
/** The simulator's tokenizer: four characters are a token, so a block is a run of 64 characters. */
export const TOKEN_CHARS = 4;

/** What one sequence holds of the cache: shared blocks by hash, and blocks of its own. */
export interface Lease {
  shared: number[];
  own: number;
}

/** Imitates vllm/v1/core/block_pool.py and kv_cache_manager.py: reference counts, and cached blocks
 *  that nobody uses stay until their room is needed, least recently used first. */
export interface KvCache {
  /** How many leading blocks of a prompt are cached. */
  match(hashes: readonly number[]): number;
  /** Blocks for `tokens` tokens of a prompt with these hashes; undefined when they do not fit (unless forced). */
  allocate(hashes: readonly number[], tokens: number, force: boolean): Lease | undefined;
  /** Makes room for `tokens` tokens in all; false when there is none (unless forced). */
  grow(lease: Lease, tokens: number, force: boolean): boolean;
  /** Gives blocks back; shared ones stay cached. */
  release(lease: Lease): void;
  resize(blocks: number): void;
  reset(): void;
  /** 0 to 1, as `vllm:kv_cache_usage_perc`: cached blocks that nobody uses count as free. */
  usage(): number;
}

/** An empty cache of that many blocks. */
export function createKvCache(blocks: number): KvCache {
  const references = new Map<number, number>();
  const idle = new Set<number>(); // insertion order is the order of eviction
  let total = blocks;
  let own = 0;

  const free = (): number => total - references.size - own;

  function evict(): void {
    for (const hash of idle) {
      if (idle.size <= Math.max(0, free())) return;
      idle.delete(hash);
    }
  }

  function refer(hash: number): void {
    idle.delete(hash);
    references.set(hash, (references.get(hash) ?? 0) + 1);
  }

  function release(lease: Lease): void {
    own -= lease.own;
    // Tail blocks first, as block_pool.free_blocks: a prefix outlives what hangs on it.
    for (const hash of lease.shared.toReversed()) {
      const left = (references.get(hash) ?? 1) - 1;
      if (left > 0) {
        references.set(hash, left);
      } else {
        references.delete(hash);
        idle.add(hash);
      }
    }
    evict();
  }

  return {
    match(hashes) {
      const missing = hashes.findIndex((hash) => !references.has(hash) && !idle.has(hash));
      return missing === -1 ? hashes.length : missing;
    },
    allocate(hashes, tokens, force) {
      const ownBlocks = Math.max(0, Math.ceil(tokens / BLOCK_TOKENS) - hashes.length);
      const fresh = hashes.filter((hash) => !references.has(hash)).length;
      if (!force && fresh + ownBlocks > free()) return undefined;
      for (const hash of hashes) refer(hash);
      own += ownBlocks;
      evict();
      return { shared: [...hashes], own: ownBlocks };
    },
    grow(lease, tokens, force) {
      const missing = Math.ceil(tokens / BLOCK_TOKENS) - lease.shared.length - lease.own;
      if (missing <= 0) return true;
      if (!force && missing > free()) return false;
      own += missing;
      lease.own += missing;
      evict();
      return true;
    },
    release,
    resize(next) {
      total = next;
      evict();
    },
    reset() {
      idle.clear();
    },
    usage: () => Math.min(1, (references.size + own) / total),
  };
}

/**
 * One hash per full block of a prompt, each including what stands before it, so that equal hashes
 * mean equal prefixes (vllm/v1/core/kv_cache_utils.py hash_block_tokens). 53 bits: two FNV-1a lanes.
 */
export function blockHashes(prompt: string): number[] {
  const size = BLOCK_TOKENS * TOKEN_CHARS;
  const hashes: number[] = [];
  let low = 0x811c9dc5;
  let high = 0x9747b28c;
  for (let at = 0; at + size <= prompt.length; at += size) {
    for (let i = at; i < at + size; i += 1) {
      const code = prompt.charCodeAt(i);
      low = Math.imul(low ^ code, 0x01000193);
      high = Math.imul(high ^ code, 0x0100018d);
    }
    hashes.push((low >>> 0) * 0x20_0000 + ((high >>> 0) & 0x1f_ffff));
  }
  return hashes;
}

/** Tokens of a text by the simulator's tokenizer; never 0, because a prompt has at least a BOS token. */
export function tokensOf(text: string): number {
  return Math.max(1, Math.ceil(text.length / TOKEN_CHARS));
}
