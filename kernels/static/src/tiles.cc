#include "tiles.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

namespace sd3par {
namespace {

constexpr TileShape kShapes[] = {{2, 256, 4, 8}, {2, 128, 6, 8}};
constexpr std::int64_t kGroup = 64, kStep = 64, kNowhere = 1;
// Cycles, as in kernels/linear_hopper_tiles.py, where they are explained.
constexpr double kColumnCycles = 2, kBytesPerCycle = 48, kTileCycles = 1200;

using Line = std::array<std::int64_t, 16>;
enum Field { kStream, kRow, kRows, kColumn, kSplit, kStride, kPlaces };

std::int64_t Up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

double Cost(std::int64_t groups, std::int64_t steps, const TileShape& shape) {
  double multiply = kColumnCycles * static_cast<double>(groups * shape.columns);
  double copy = static_cast<double>(2 * kGroup * (kGroup * groups + shape.columns)) / kBytesPerCycle;
  return static_cast<double>(steps) * std::max(multiply, copy) + kTileCycles;
}

// For each program which tiles it does: each next one goes to the program that is free first.
std::vector<std::vector<std::size_t>> Assign(const std::vector<double>& costs, std::int64_t programs) {
  programs = std::min(programs, static_cast<std::int64_t>(costs.size()));
  std::vector<std::vector<std::size_t>> given(programs);
  using Free = std::pair<double, std::int64_t>;
  std::priority_queue<Free, std::vector<Free>, std::greater<Free>> free;
  for (std::int64_t i = 0; i < programs; ++i) free.push({0.0, i});
  for (std::size_t number = 0; number < costs.size(); ++number) {
    auto [end, program] = free.top();
    free.pop();
    given[program].push_back(number);
    free.push({end + costs[number], program});
  }
  return given;
}

// When the last program ends, and how many of the last full tiles are to be cut for it. groups: most first.
std::pair<double, std::int64_t> Finish(const std::vector<std::int64_t>& groups, std::int64_t steps,
                                       const TileShape& shape, std::int64_t programs) {
  std::int64_t full = std::count(groups.begin(), groups.end(), shape.groups), some = full % programs;
  std::pair<double, std::int64_t> best{-1, 0};
  for (std::int64_t halved : {std::int64_t{0}, some}) {
    std::vector<std::int64_t> rest(halved * shape.groups, 1);
    rest.insert(rest.end(), groups.begin() + full, groups.end());
    std::sort(rest.begin(), rest.end(), std::greater<>());
    rest.insert(rest.begin(), full - halved, shape.groups);
    std::vector<double> costs;
    for (auto one : rest) costs.push_back(Cost(one, steps, shape));
    double last = 0;
    for (const auto& own : Assign(costs, programs)) {
      double end = 0;
      for (auto i : own) end += costs[i];
      last = std::max(last, end);
    }
    if (best.first < 0 || last < best.first) best = {last, halved};
    if (some == 0) break;
  }
  return best;
}

std::vector<std::int64_t> GroupsOf(const std::vector<Line>& lines) {
  std::vector<std::int64_t> groups;
  for (const auto& line : lines) groups.push_back(Up(line[kRows], kGroup));
  return groups;
}

// Rows of one tile, and with which its second part begins.
struct Span {
  std::int64_t row, rows, split;
};

class Cuts {
 public:
  explicit Cuts(const Rectangles& rectangles) : rectangles_(rectangles) {
    std::set<std::int64_t> edges;
    for (const auto& one : rectangles) edges.insert(one.row), edges.insert(one.row + one.rows);
    cuts_.assign(edges.begin(), edges.end());
  }

  // All tiles below each other: a tile ends where a third rectangle would begin.
  std::vector<Span> Spans(std::int64_t height) const {
    std::vector<Span> found;
    for (std::int64_t row = cuts_.front(); row < cuts_.back();) {
      std::int64_t end = std::min(row + height, cuts_.back());
      auto inner = std::upper_bound(cuts_.begin(), cuts_.end(), row);
      std::int64_t split = inner != cuts_.end() && *inner < end ? *inner : end;
      if (split < end && std::next(inner) != cuts_.end() && *std::next(inner) < end) end = *std::next(inner);
      found.push_back({row, end - row, split - row});
      row = end;
    }
    return found;
  }

  // One of each rectangle's spans in turn, so that no link has all of a time's stores.
  std::vector<Span> ByTurns(const std::vector<Span>& spans) const {
    std::vector<std::vector<Span>> owners;
    std::vector<std::int64_t> firsts;
    for (const auto& span : spans) {
      std::int64_t first = Above(span.row);
      auto at = std::find(firsts.begin(), firsts.end(), first) - firsts.begin();
      if (at == static_cast<std::ptrdiff_t>(firsts.size())) firsts.push_back(first), owners.emplace_back();
      owners[at].push_back(span);
    }
    std::vector<std::tuple<double, std::size_t, std::int64_t, Span>> turns;
    for (std::size_t which = 0; which < owners.size(); ++which) {
      const auto& some = owners[which];
      for (std::size_t i = 0; i < some.size(); ++i) {
        turns.emplace_back(static_cast<double>(i) / static_cast<double>(some.size()), which, some[i].row, some[i]);
      }
    }
    std::sort(turns.begin(), turns.end(), [](const auto& a, const auto& b) {
      return std::tie(std::get<0>(a), std::get<1>(a), std::get<2>(a)) <
             std::tie(std::get<0>(b), std::get<1>(b), std::get<2>(b));
    });
    std::vector<Span> ordered;
    for (const auto& turn : turns) ordered.push_back(std::get<3>(turn));
    return ordered;
  }

  // Where a tile's first row would be, by the rectangle that has `owner`.
  std::int64_t Place(std::int64_t owner, std::int64_t row, std::int64_t column, std::int64_t columns) const {
    std::int64_t first = Above(owner);
    for (const auto& one : rectangles_) {
      if (one.row == first) return one.address + 2 * ((row - one.row) * columns + column);
    }
    return kNowhere;
  }

 private:
  std::int64_t Above(std::int64_t row) const { return *std::prev(std::upper_bound(cuts_.begin(), cuts_.end(), row)); }

  const Rectangles& rectangles_;
  std::vector<std::int64_t> cuts_;
};

Line LineOf(const Cuts& cuts, std::int64_t stream, const Span& span, std::int64_t column, std::int64_t columns,
            const TileShape& shape) {
  Line line{stream, span.row, span.rows, column, span.split, columns};
  for (std::int64_t j = 0; j < shape.columns / kGroup; ++j) {
    std::int64_t at = column + j * kGroup;
    bool second = span.split < span.rows && at < columns;
    line[kPlaces + 2 * j] = at < columns ? cuts.Place(span.row, span.row, at, columns) : kNowhere;
    line[kPlaces + 2 * j + 1] = second ? cuts.Place(span.row + span.split, span.row, at, columns) : kNowhere;
  }
  return line;
}

// The tiles of a product, `band` of them below each other at a time.
void AddRaster(std::int64_t stream, const Rectangles& rectangles, std::int64_t columns, const TileShape& shape,
               std::vector<Line>* lines) {
  Cuts cuts(rectangles);
  auto spans = cuts.ByTurns(cuts.Spans(kGroup * shape.groups));
  for (std::size_t begin = 0; begin < spans.size(); begin += shape.band) {
    std::size_t end = std::min(begin + shape.band, spans.size());
    for (std::int64_t column = 0; column < columns; column += shape.columns) {
      for (std::size_t i = begin; i < end; ++i) {
        lines->push_back(LineOf(cuts, stream, spans[i], column, columns, shape));
      }
    }
  }
}

// A tile as tiles of 64 rows.
void AddCut(const Line& line, std::int64_t columns, const TileShape& shape, std::vector<Line>* pieces) {
  for (std::int64_t down = 0; down < line[kRows]; down += kGroup) {
    Line piece = line;
    piece[kRow] += down;
    piece[kRows] = std::min(kGroup, line[kRows] - down);
    piece[kSplit] = std::min(std::max<std::int64_t>(line[kSplit] - down, 0), kGroup);
    for (std::int64_t j = 0; j < 2 * (shape.columns / kGroup); ++j) {
      auto& place = piece[kPlaces + j];
      if (place != kNowhere) place += 2 * down * columns;
    }
    pieces->push_back(piece);
  }
}

void SortLargestFirst(std::vector<Line>* lines) {
  std::stable_sort(lines->begin(), lines->end(),
                   [](const Line& a, const Line& b) { return Up(a[kRows], kGroup) > Up(b[kRows], kGroup); });
}

std::vector<Line> Tiles(const std::vector<Rectangles>& streams, std::int64_t columns, const TileShape& shape) {
  std::vector<Line> lines;
  for (std::size_t i = 0; i < streams.size(); ++i) AddRaster(i, streams[i], columns, shape, &lines);
  SortLargestFirst(&lines);
  return lines;
}

// The same with the last full tiles cut, if that ends earlier.
std::vector<Line> CutTiles(const std::vector<Line>& lines, std::int64_t steps, std::int64_t columns,
                           const TileShape& shape, std::int64_t programs) {
  auto groups = GroupsOf(lines);
  std::int64_t halved = Finish(groups, steps, shape, programs).second;
  std::int64_t first = std::count(groups.begin(), groups.end(), shape.groups) - halved;
  std::vector<Line> cut(lines.begin(), lines.begin() + first);
  for (std::int64_t i = first; i < first + halved; ++i) AddCut(lines[i], columns, shape, &cut);
  cut.insert(cut.end(), lines.begin() + first + halved, lines.end());
  SortLargestFirst(&cut);
  return cut;
}

}  // namespace

TileTable TilesOf(const std::vector<Rectangles>& streams, std::int64_t terms, std::int64_t columns, std::int64_t programs) {
  std::int64_t steps = terms / kStep;
  const TileShape* chosen = nullptr;
  double least = 0;
  for (const auto& shape : kShapes) {
    double end = Finish(GroupsOf(Tiles(streams, columns, shape)), steps, shape, programs).first;
    if (chosen == nullptr || end < least) chosen = &shape, least = end;
  }
  auto lines = CutTiles(Tiles(streams, columns, *chosen), steps, columns, *chosen, programs);
  std::vector<double> costs;
  for (auto groups : GroupsOf(lines)) costs.push_back(Cost(groups, steps, *chosen));
  auto given = Assign(costs, programs);
  std::size_t slots = 0;
  for (const auto& own : given) slots = std::max(slots, own.size());
  TileTable table{*chosen, static_cast<std::int64_t>(given.size()), {}};
  table.lines.assign(1 + (slots + 1) * given.size(), Line{});
  table.lines[0] = {static_cast<std::int64_t>(slots), steps, columns};
  for (std::size_t program = 0; program < given.size(); ++program) {
    for (std::size_t slot = 0; slot < given[program].size(); ++slot) {
      table.lines[1 + slot * given.size() + program] = lines[given[program][slot]];
    }
  }
  return table;
}

}  // namespace sd3par

// For tests, which compare it with Python's. rectangles: of all streams, three numbers each; counts: how many each has.
// Writes at most `room` numbers, returns how many there are.
extern "C" std::int64_t sd3par_tiles(const std::int64_t* rectangles, const std::int64_t* counts, std::int64_t streams,
                                     std::int64_t terms, std::int64_t columns, std::int64_t programs,
                                     std::int64_t* found, std::int64_t room) {
  std::vector<sd3par::Rectangles> given(streams);
  for (std::int64_t i = 0; i < streams; ++i) {
    for (std::int64_t j = 0; j < counts[i]; ++j, rectangles += 3) {
      given[i].push_back({rectangles[0], rectangles[1], rectangles[2]});
    }
  }
  auto table = sd3par::TilesOf(given, terms, columns, programs);
  std::int64_t written = 0;
  for (const auto& line : table.lines) {
    for (auto number : line) {
      if (written < room) found[written] = number;
      ++written;
    }
  }
  return written;
}
